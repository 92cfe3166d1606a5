"""The kv_cache among arguments and outputs of transformers, found by its type.

Its name among arguments and outputs has changed before (past_key_values, cache_params, cache).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.cache_utils import Cache

from dive.errors import DiveError


def caches_in(handed_over: Mapping[str, Any]) -> list[Cache]:
    """The different caches among a forward's arguments or outputs; normally one."""
    found = {id(value): value for value in handed_over.values() if isinstance(value, Cache)}
    return list(found.values())


def filled_layers(outputs: Mapping[str, Any], length: int) -> Sequence[Any]:
    """The layers of the cache that a forward over `length` tokens returned.

    Raises:
        DiveError: it returned none, or one with another number of tokens, from which decoding would
            not continue the prompt.
    """
    caches = caches_in(outputs)
    held = [int(cache.get_seq_length()) for cache in caches]
    if held != [length]:
        raise DiveError(
            f"the model's forward over {length} tokens returned caches of {held} tokens, want one "
            f'of {length}; engine="transformers" decodes without dive._C'
        )
    layers: Sequence[Any] = caches[0].layers
    return layers
