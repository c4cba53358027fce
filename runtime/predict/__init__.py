"""`python -m runtime.predict`: an archive of pictures and scans to files of masks."""
