"""Where Triton's interpreter can be used."""

import inspect

import pytest


def need_an_interpreter() -> None:
    """Skips without Triton, and where its interpreter is too old for this NumPy.

    Triton 3.6 takes int() of an array of one element, which NumPy 2.4 refuses.
    """
    pytest.importorskip("triton", reason="the kernels are Triton's")
    import numpy as np
    from triton.runtime import interpreter

    recent = tuple(int(part) for part in np.__version__.split(".")[:2]) >= (2, 4)
    if recent and "int(self.handle.data))" in inspect.getsource(interpreter):
        pytest.skip("this Triton's interpreter needs numpy < 2.4")
