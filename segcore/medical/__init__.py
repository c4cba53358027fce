"""The files a hospital has: DICOM and NIfTI in, masks that refer to them out. Needs the extra `medical`."""
