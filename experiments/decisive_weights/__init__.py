"""The study of decisive weights: a protocol fixed beforehand, on a world that can refute them.

`world.py` draws hospitals, `arms.py` has what is compared, `slots.py` and `scores.py` measure it,
`runner.py` runs what is missing, `verdicts.py` and `tables.py` turn records into words.
docs/decisive-study.md has the protocol.
"""
