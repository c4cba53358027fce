"""`python -m export.kit`: a bundle with all that a device needs to build, verify and measure it."""
