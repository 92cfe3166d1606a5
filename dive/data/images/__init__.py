"""One image file, of whatever kind and depth, to 8-bit RGB or to its size; `load` is the entry."""
