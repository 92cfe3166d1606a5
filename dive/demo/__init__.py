"""The built-in world: drawn hospitals, their reports, a small backbone, and `dive demo`."""
