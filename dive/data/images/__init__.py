"""Image files of any kind and depth, read as 8-bit RGB or for their size; see `load`."""
