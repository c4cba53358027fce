"""`python -m benchmarks.distillation`: whether, and by how much, a teacher makes a small student better."""
