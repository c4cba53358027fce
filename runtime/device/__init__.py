"""`python -m runtime.device`: builds, verifies and measures a bundle on the device that will run it."""
