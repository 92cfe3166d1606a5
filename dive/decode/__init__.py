"""Decoding: a KV-cached text decoder run by `dive._C`, with the adapter inside.

Start at `session`. `fallback` has the reasons for which transformers decodes instead.
"""

from dive.decode.session import DecodeSession

__all__ = ["DecodeSession"]
