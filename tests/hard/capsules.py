"""DLPack capsules that lie, and producers that raise."""

import ctypes
from collections.abc import Callable
from typing import Any


class Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class Kind(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", Kind),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


_MIDDLE = 1 << 18
_memory = ctypes.create_string_buffer(2 * _MIDDLE)  # true numbers of any honest reach lie in it
_kept: list[Any] = []  # what a capsule points to is never freed
_new = ctypes.pythonapi.PyCapsule_New
_new.restype = ctypes.py_object
_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
NAMES = {name: ctypes.c_char_p(name) for name in (b"dltensor", b"dltensor_versioned", b"odd")}


def lying_capsule(rng: Any) -> Any:
    """A tensor that says one or two things that are not so.

    No lie that nobody could tell: what it claims lies in memory of its own, or in none at all.
    """
    shape = rng.choice([[3, 48], [2], [2, 5, 12], [3], [48]])
    strides = [1] * len(shape)
    for i in range(len(shape) - 1, 0, -1):
        strides[i - 1] = strides[i] * shape[i]
    code, bits = rng.choice([(2, 32), (2, 32), (0, 64), (6, 8)])
    ndim, data, offset, lanes = len(shape), ctypes.addressof(_memory) + _MIDDLE, 0, 1
    device, null, major, flags = (1, 0), None, 1, 0
    for _ in range(rng.randrange(1, 3)):
        lie = rng.randrange(12)
        place = rng.randrange(len(shape))
        if lie == 0:
            shape[place] = rng.choice([-1, -(2**63), 2**62, 2**63 - 1, 2**48, 0])
        elif lie == 1:
            strides[place] = rng.choice([2**62, -(2**63), 2**63 - 1, 0, -1, -48, 7, 2**50])
        elif lie == 2:
            ndim = rng.choice([-1, 2**31 - 1, 65, 1000, 0])
        elif lie == 3:
            data = rng.choice([None, 1, 8, data + 1, data + 2])
        elif lie == 4:
            offset = rng.choice([2**64 - 1, 2**63, 2**48, 3, 4])
        elif lie == 5:
            lanes = rng.choice([0, 2, 65535])
        elif lie == 6:
            code, bits = rng.choice([(0, 8), (1, 255), (4, 16), (5, 128), (255, 0), (2, 0), (2, 8)])
        elif lie == 7:
            device = rng.choice([(2, 0), (13, 3), (1, 7), (-1, -1), (2**31 - 1, 0), (3, 0), (0, 0)])
        elif lie == 8:
            null = "shape"
        elif lie == 9:
            null = "strides"
        elif lie == 10:
            major = rng.choice([0, 2, 2**32 - 1])
        else:
            flags = rng.choice([1, 2, 2**64 - 1])
    sizes, steps = (ctypes.c_int64 * len(shape))(*shape), (ctypes.c_int64 * len(shape))(*strides)
    tensor = Tensor(data, Device(*device), ndim, Kind(code, bits, lanes), sizes, steps, offset)
    if null is not None:
        setattr(tensor, null, None)
    named = rng.choice([b"dltensor", b"dltensor_versioned", b"dltensor_versioned", b"odd"])
    if named == b"dltensor":
        held: Any = Managed(tensor, None, None)
    else:
        held = Versioned(major, 0, None, None, flags, tensor)
    _kept.append((held, sizes, steps))
    return _new(ctypes.addressof(held), NAMES[named], None)


class Capsuled:
    """An object whose capsule is made by a function."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __dlpack__(self, **_options: Any) -> Any:
        return self.make()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class Raises:
    """An object whose `__dlpack__` raises."""

    class Odd(Exception):
        """Of the user's own."""

    class Worse(BaseException):
        """That is no Exception, as KeyboardInterrupt."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("says nothing")

    KINDS = (Odd, Worse, Mute, KeyboardInterrupt, MemoryError, SystemExit)

    def __init__(self, rng: Any) -> None:
        more = (TypeError, AttributeError, BufferError, RuntimeError)
        self.error = rng.choice([*self.KINDS, *more])("x")

    def __dlpack__(self, **_options: Any) -> Any:
        raise self.error
