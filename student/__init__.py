"""LightUNet students and their distillation from a teacher's soft labels."""
