"""Weights that are kept as a pickle, which is a program: what to say where one is refused."""

import pickle
from pathlib import Path

_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")


def refusal(error: BaseException, path: Path) -> str | None:
    """What to say where torch did not read a pickle since more than weights is in it; None of any
    other error. torch itself advises to read it all the same, which would run it.

    path: the file, or a folder that holds it.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, pickle.UnpicklingError) or "weights_only" in str(seen):
            break
        seen = seen.__cause__ or seen.__context__
    else:
        return None
    names = [path.name]
    if path.is_dir():
        names = sorted(one.name for one in path.iterdir() if one.suffix in _ENDINGS)
    return (
        f"{', '.join(names[:3]) or 'a file of weights'} is a pickle that is damaged or holds more "
        "than weights, which would be run if it were read: it is refused; wants safetensors"
    )
