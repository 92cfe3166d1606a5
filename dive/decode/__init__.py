"""The decode step: a KV-cached text decoder run by `dive._C`, with the adapter inside.

Start at `session`. `fallback` says in words what is left to transformers.
"""

from dive.decode.session import DecodeSession

__all__ = ["DecodeSession"]
