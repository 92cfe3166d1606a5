"""DICOM files, read as 8-bit pixels; see `read`."""
