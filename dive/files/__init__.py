"""Files: atomic and locked writing, continued outputs, and cautious reading."""
