"""DICOM segmentations: written for a scan, and read back onto its grid."""
