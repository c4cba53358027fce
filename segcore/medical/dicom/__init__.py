"""DICOM files in: header, pixels, series. Nothing of the patient comes along."""
