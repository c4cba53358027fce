"""What both trainings share: losses, augmentation, loader, loop. Needs torch; nothing that runs on a device imports it."""
