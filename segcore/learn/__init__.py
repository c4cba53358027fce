"""What both trainings share: losses, augmentation, loader, loop. Needs torch; no device imports it."""
