"""The error of weights in a pickle that is refused, because reading a pickle runs its code."""

import pickle
from pathlib import Path

_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")


def refusal(error: BaseException, path: Path) -> str | None:
    """The message where torch refused a pickle that has more than weights; None of other errors.

    The message of torch advises to read it nevertheless, which would run its code.

    path: the file, or the folder that contains it.
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
        f"{', '.join(names[:3]) or 'a file of weights'} is a pickle that is damaged, or has code "
        "that would run when it is read, want safetensors"
    )
