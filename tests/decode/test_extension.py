"""dive._C as Python sees it: the tensors and weights it takes, its build, and its absence."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
import torch

from dive.decode import native
from dive.errors import DiveError
from dive.errors.checks import ACTIVATIONS, MAX_RANK

C = pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")

SIZE = 1024  # numbers of which copy_memory takes multiples


def test_a_steering_holds_what_it_was_given():
    def parts():
        g = torch.Generator().manual_seed(4)
        return [torch.randn(*shape, generator=g) for shape in ((12, 96), (12,), (96, 12), (96,))]

    taken = C.Steering(*map(torch.nn.Parameter, parts()), 0.3)
    assert (taken.rank, taken.width, taken.dtype) == (12, 96, "float32")
    packed = native.pack_steering(
        *parts(), 0.3, dtype=torch.bfloat16, device=torch.device("cpu"), engine_device="cpu"
    )
    assert (packed.rank, packed.width, packed.dtype) == (12, 96, "bfloat16")


def test_numpy_arrays_come_by_capsule_and_are_let_go():
    target, source = torch.zeros(SIZE).numpy(), torch.randn(SIZE).numpy()
    before = sys.getrefcount(source)
    for _ in range(3):
        C.copy_memory(target, source)
    assert sys.getrefcount(source) == before
    np.testing.assert_array_equal(target, source)
    target.flags.writeable = False
    with pytest.raises(ValueError, match="target .*(read-only|readonly)"):
        C.copy_memory(target, source)


class OwnCapsule:
    """A tensor type without the exchange table; `export` is called for its capsule."""

    def __init__(self, export):
        self.export = export

    def __dlpack__(self, **options):
        return self.export(**options)


def test_capsules_of_both_versions_and_broken_producers():
    x, d = torch.ones(SIZE), torch.full((SIZE,), 2.0)
    old = OwnCapsule(lambda max_version=None: torch.Tensor.__dlpack__(d))
    C.copy_memory(OwnCapsule(lambda **o: torch.Tensor.__dlpack__(x, **o)), old)
    assert torch.equal(x, d)
    used = torch.Tensor.__dlpack__(d)
    C.copy_memory(x, OwnCapsule(lambda **o: used))
    with pytest.raises(ValueError, match="source .*fresh DLPack capsule"):
        C.copy_memory(x, OwnCapsule(lambda **o: used))
    with pytest.raises(ValueError, match="source .*want a fresh DLPack capsule"):
        C.copy_memory(x, OwnCapsule(lambda **o: 3))

    def broken(**options):
        raise RuntimeError("no memory left")

    with pytest.raises(ValueError, match="source cannot be read: no memory left"):
        C.copy_memory(x, OwnCapsule(broken))


def _bad_tensors():
    x = torch.zeros(SIZE)
    freed = torch.zeros(SIZE)
    freed.untyped_storage().resize_(0)
    byte = torch.zeros(SIZE * 4 + 1, dtype=torch.uint8)
    crooked = np.frombuffer(memoryview(byte.numpy())[1:], dtype="f4")
    return {
        "a number": (3.0, "memory is a float, want a tensor"),
        "nothing": (None, "memory is a NoneType"),
        "integers": (x.int(), "memory has dtype int32, want float32"),
        "float64": (x.double(), "memory has dtype float64"),
        "complex": (x.to(torch.complex64), "memory has dtype complex64"),
        "two dimensions": (x[None], r"memory has shape \[1, 1024\], want \[any\]"),
        "every second": (torch.zeros(2 * SIZE)[::2], "memory has shape .*strides.*contiguous"),
        "the same again": (x[:1].expand(SIZE), "memory has shape .*strides.*contiguous"),
        "another device": (x.to("meta"), "memory"),
        "sparse": (x.to_sparse(), "memory cannot be read"),
        "freed": (freed, "memory has shape .* no memory"),
        "not aligned": (crooked, "memory starts at an address|memory .*read-only"),
    }


@pytest.mark.parametrize("name", _bad_tensors())
def test_a_bad_tensor_is_named(name):
    tensor, message = _bad_tensors()[name]
    with pytest.raises(ValueError, match=message):
        C.read_memory(tensor)


def test_memory_that_is_read_and_written_at_once_is_refused():
    memory = torch.zeros(2 * SIZE)
    with pytest.raises(ValueError, match="target shares memory with source, want its own"):
        C.copy_memory(memory[:SIZE], memory[SIZE // 2 : SIZE // 2 + SIZE])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down": torch.zeros(2, 9)}, r"up has shape \[8, 2\], want \[9, 2\]"),
        ({"down": torch.zeros(8)}, r"down has shape \[8\], want \[any, any\]"),
        ({"down": torch.zeros(129, 8)}, "want a rank up to 128"),
        ({"up": torch.zeros(8, 2).bfloat16()}, "up has dtype bfloat16, want float32"),
        ({"down_bias": torch.zeros(3)}, "down_bias has shape"),
        ({"static": torch.zeros(8).long()}, "static has dtype int64, want float32"),
        ({"down": torch.zeros(2, 8).half()}, "down has dtype float16, want float32 or bfloat16"),
        ({"static": torch.zeros(16)[::2]}, "static has shape .*strides"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"activation": "relu"}, "activation is 'relu', want silu, gelu"),
        ({"eps": -1.0}, "eps is -1"),
    ],
)
def test_bad_input_of_packing_is_named(change, message):
    good = {
        "down": torch.zeros(2, 8),
        "down_bias": torch.zeros(2),
        "up": torch.zeros(8, 2),
        "static": torch.zeros(8),
        "scale": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        C.Steering(**(good | change))


def test_errors_of_packing_are_dive_errors():
    parts = (torch.zeros(129, 8), torch.zeros(129), torch.zeros(8, 129), torch.zeros(8), 0.1)
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "engine_device": "cpu"}
    with pytest.raises(DiveError, match="pack_steering: down .*want a rank up to 128"):
        native.pack_steering(*parts, **options)


def test_two_thousand_random_calls_end_in_a_result_or_an_error():
    dice = random.Random(0)
    x = torch.zeros(3, 8)
    pool = [None, x, x.bfloat16(), x.half(), x[:, ::2], x.T, x[0], x[:0], x.int(), 4, "s", 0.1]
    pool += [torch.zeros(3), torch.zeros(8), torch.zeros(8, 3), torch.zeros(8).bfloat16()]
    pool += [x.expand(2, 3, 8), np.zeros((3, 8), "f4"), np.zeros(8), [None] * 3, x.to("meta")]
    sound = [x, torch.zeros(3), torch.zeros(8, 3), torch.zeros(8), 0.1]
    results = {"done": 0, "refused": 0}
    for _ in range(2000):
        arguments = [dice.choice(pool) if dice.random() < 0.3 else one for one in sound]
        try:
            C.Steering(*arguments)
            results["done"] += 1
        except (ValueError, TypeError) as error:
            assert str(error)
            results["refused"] += 1
    assert results["done"] > 10 and results["refused"] > 1000


def test_build_info_and_choice_of_path():
    info = native.build_info()
    assert info is not None and native.available()
    from dive import __version__

    assert info["version"] == __version__ and info["compiler"]
    assert info["cuda"] is bool(info["cuda_archs"])
    assert info["isa_usable"][0] == "scalar" and info["isa"] in info["isa_usable"]
    assert set(info["isa_usable"]) <= set(info["isa_compiled"])
    with pytest.raises(ValueError, match="name is 'mmx', this machine can run scalar"):
        C.use_isa("mmx")
    assert C.build_info()["isa"] == info["isa"]


def test_without_the_extension_one_warning_and_no_kernels():
    script = """
        import logging, sys

        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name == "dive._C":
                    raise ImportError("hidden by the test")

        sys.meta_path.insert(0, Hidden())
        logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
        from dive.decode import native

        assert not native.available() and native.build_info() is None and native.load() is None
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot be loaded: hidden by the test") == 1
    assert done.stdout.count("WARNING") == 1


COPY = """
    import json, logging, sys
    # an editable installation would find the checkout's module
    sys.meta_path = [one for one in sys.meta_path if "Editable" not in str(one)]
    logging.basicConfig(format="LOG %(message)s", stream=sys.stderr)
    import dive
    from dive.decode import native
    from tiny_decoders import small
    from dive.decode.session import DecodeSession

    session = DecodeSession(small("llama"))
    print(json.dumps([dive.__file__, native.find().state, session.engine_choice().reason]))
"""


@pytest.mark.parametrize(
    ("state", "name", "data", "said"),
    [
        ("not built", None, b"", ["dive._C is not built here; install dive-mrg's wheel for"]),
        ("not built", "_C.cpython-399-x86_64-linux-gnu.so", b"",
         ["not built here for this Python: _C.cpython-399-x86_64-linux-gnu.so is there",
          f"loads _C{EXTENSION_SUFFIXES[0]}"]),
        ("not loadable", f"_C{EXTENSION_SUFFIXES[0]}", b"",
         ["there but cannot be loaded: ", "file too short", "force-reinstall"]),
        ("not loadable", f"_C{EXTENSION_SUFFIXES[0]}", b"\x7fELF" + 200 * b"?",
         ["there but cannot be loaded: "]),
        ("loaded", f"_C{EXTENSION_SUFFIXES[0]}", None, ["a Llama decoder in float32 on "]),
    ],
)  # fmt: skip
def test_missing_broken_and_loaded_are_told_apart(state, name, data, said, tmp_path):
    """In a copy without csrc/, as an installed package is."""
    own = Path(native.__file__).parents[1]
    shutil.copytree(own, tmp_path / "dive", ignore=shutil.ignore_patterns("_C.*so", "__pycache__"))
    if name is not None:
        data = Path(C.__file__).read_bytes() if data is None else data
        (tmp_path / "dive" / name).write_bytes(data)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1] / "models")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COPY)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    place, found, reason = json.loads(done.stdout)
    assert Path(place).parent == tmp_path / "dive" and found == state
    for words in said:
        assert words.lower() in reason.lower()
    assert "pip install -e" not in reason and "\n" not in reason
    assert done.stderr.count(reason) == (state != "loaded")


def test_a_checkout_is_told_to_build_it(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "setup.py").touch()
    assert "pip install -e ." in native._advice(tmp_path)


def test_ranks_and_activations_are_those_of_python():
    def packed(rank, activation="silu"):
        parts = (torch.zeros(rank, 4), torch.zeros(rank), torch.zeros(4, rank), torch.zeros(4))
        return C.Steering(*parts, 1.0, activation=activation)

    assert [packed(1, name).rank for name in ACTIVATIONS] == [1] * len(ACTIVATIONS)
    with pytest.raises(ValueError, match="want (.*)$") as refused:
        packed(1, "relu")
    named = re.split(", | or ", str(refused.value).partition("want ")[2])
    assert named == list(ACTIVATIONS)
    assert packed(MAX_RANK).rank == MAX_RANK
    with pytest.raises(ValueError, match=rf"want a rank up to {MAX_RANK} "):
        packed(MAX_RANK + 1)
