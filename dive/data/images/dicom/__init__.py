"""One DICOM file to 8-bit pixels; `read` is the entry."""
