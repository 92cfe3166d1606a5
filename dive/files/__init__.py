"""Files: written whole or not at all, locked, continued; and read with suspicion."""
