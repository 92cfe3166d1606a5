"""Trials that a user never makes on purpose: kills, two processes, full disks, hostile files.

`make hard` runs all of them; `tests/hard/test_hard.py` a few attempts of each.
"""
