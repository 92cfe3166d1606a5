"""Readers, one file per dataset in its original form; `dive.data.open` chooses one."""
