"""Memory read and copied in streams: completely, by every way, and floors that are not lower."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dive.bench import rates, steer

_C = pytest.importorskip("dive._C")
ISAS = _C.build_info()["isa_usable"]
CPU = torch.device("cpu")
CHUNK = 4 << 20  # bytes of csrc/cpu/streams.cpp


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.build_info()["isa"]
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(before)


def numbers(size: int) -> torch.Tensor:
    """Returns a float32 vector of `size` bytes, in which every bit matters."""
    return torch.randint(-(2**31), 2**31, (size // 4,), dtype=torch.int32).view(torch.float32)


def of_all(memory: torch.Tensor) -> int:
    """Returns the exclusive or of all 64-bit words."""
    words = memory.view(torch.int64).clone()
    while len(words) > 1:
        odd = words[-1:] if len(words) % 2 else words[:0]
        half = len(words) // 2
        words = torch.cat([words[:half] ^ words[half : 2 * half], odd])
    return int(words[0]) % 2**64


@pytest.mark.parametrize("size", [4096, 3 * 4096, CHUNK + 4096])
def test_every_byte_is_read_once(isa: str, size: int) -> None:
    memory = numbers(size)
    want = of_all(memory)
    for streams in (1, 2, 4, 8):
        for ahead in (0, 2048):
            for threads in range(1, _C.physical_cores() + 1):
                got = _C.read_memory(memory, streams=streams, ahead=ahead, threads=threads)
                assert got == want, (streams, ahead, threads)
    memory.view(torch.int32)[-1] ^= 1
    assert _C.read_memory(memory, streams=4) == want ^ (1 << 32)


@pytest.mark.parametrize("size", [4096, CHUNK + 3 * 4096])
def test_every_byte_is_copied(isa: str, size: int) -> None:
    source = numbers(size)
    for streams in (1, 2, 4, 8):
        for past_caches in (False, True):
            for threads in range(1, _C.physical_cores() + 1):
                target = torch.zeros(size // 4)
                _C.copy_memory(
                    target, source, streams=streams, ahead=1024, past_caches=past_caches,
                    threads=threads,
                )  # fmt: skip
                same = torch.equal(target.view(torch.int32), source.view(torch.int32))
                assert same, (streams, past_caches, threads)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"streams": 3}, "streams is 3, want 1, 2, 4 or 8"),
        ({"streams": 0}, "streams is 0"),
        ({"ahead": -1}, "ahead is -1, want 0 to 1048576 bytes"),
        ({"threads": 0}, "threads is 0, want 1 to"),
        ({"threads": 10_000}, "threads is 10000, want 1 to"),
        ({"memory": torch.zeros(1000)}, "memory has 4000 bytes, want a multiple of 4096"),
        ({"memory": torch.zeros(0)}, "memory has 0 bytes"),
        ({"memory": torch.zeros(1025)[1:]}, "memory begins inside a cache line"),
        ({"memory": torch.zeros(2048)[::2]}, "memory has"),
        ({"memory": torch.zeros(32, 32)}, "memory has shape"),
        ({"memory": torch.zeros(1024, dtype=torch.float64)}, "memory has dtype float64"),
    ],
)
def test_what_cannot_be_read_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _C.read_memory(**{"memory": torch.zeros(1024), **given})


def test_what_cannot_be_copied_is_named() -> None:
    both = torch.zeros(2048)
    with pytest.raises(ValueError, match="target shares memory with source"):
        _C.copy_memory(both[:1024], both[:1024])
    with pytest.raises(ValueError, match=r"target has shape \[2048\]"):
        _C.copy_memory(both, torch.zeros(1024))


def test_a_floor_is_of_the_fastest_way_and_torch_s_own_are_among_them() -> None:
    memory = rates.read_buffer(CPU, False, 3 << 20)
    assert memory.nbytes == 3 << 20 and bool((memory == 1).all())
    assert rates.read_buffer(CPU, False, (1 << 20) + 1).nbytes == 2 << 20
    ways = rates.reads(memory)
    assert {"sum", "maximum", "4 streams, 1024 bytes ahead"} <= set(ways)
    two: dict[str, Any] = {"slow": lambda: memory.cumsum(0), "fast": lambda: None}
    assert rates.fastest(two, CPU) == "fast"
    source = torch.randn(16, 64)  # 4096 bytes
    for name, copy in rates.copies(target := torch.empty_like(source), source).items():
        target.zero_()
        copy()
        assert torch.equal(target, source), name
    assert len(rates.copies(torch.empty(1, 64), torch.empty(1, 64))) == 1  # torch's alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_floor_of_steering_copies_the_stream(dtype: torch.dtype) -> None:
    h = torch.randn(64, 64).to(dtype).requires_grad_()
    name, copy = steer.copy(h)
    copy()
    assert name in rates.copies(torch.empty_like(h), h.detach())


def test_a_read_is_repeated_as_often_as_asked() -> None:
    count = [0]

    def read() -> None:
        count[0] += 1

    again = rates.read_again(read, 5)
    assert count == [1]
    again()
    assert count == [6]
