"""Readers, a file for each dataset as its owners hand it out; `dive.data.open` chooses one."""
