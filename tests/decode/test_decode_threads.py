"""Threads of the engine: the same bits for any number of them, and their beginning and end.

csrc/tests/threads_test.cpp does the same without Python and with more threads; DIVE_SLOW_TESTS=1
builds it with the sanitizers and runs it.
"""

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from tiny_decoders import FAMILIES, SIZES
from tiny_steering import randomised

from dive.decode.session import DecodeSession

C = pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")

CORES = C.physical_cores()
more_than_one = pytest.mark.skipif(CORES < 2, reason="the process may run on one core only")
# large enough for every product, and the attention of the last steps, to be cut into parts
WIDE = {
    "vocab_size": 1999,
    "hidden_size": 264,
    "intermediate_size": 700,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def wide(family="qwen3", dtype=torch.float32):
    kind, config, more = FAMILIES[family]
    more = {name: value for name, value in more.items() if name not in WIDE}
    if "layer_types" in more:
        more["layer_types"] = more["layer_types"][:2]
    torch.manual_seed(0)
    return kind(config(**{**SIZES, **more, **WIDE})).eval().to(dtype)


class Run:
    """An engine with three slots, of which one is much longer."""

    def __init__(self, model, threads=1, adapter=None):
        session = DecodeSession(model)
        assert session.engine_choice().engine == "dive._C", session.engine_choice()
        self.engine, self.vocabulary = session.binding.cache.engine, session.binding.spec.vocabulary
        self.engine.threads = threads
        assert self.engine.threads == threads
        self.engine.reserve(3, 240)
        steering = session.binding.steering(adapter)
        for row, length in enumerate((0, 200, 31)):
            generator = torch.Generator().manual_seed(row)
            size = (2, length, 64)
            for layer in range(2):
                keys, values = (torch.randn(size, generator=generator) for _ in range(2))
                self.engine.copy_cache(layer, row, 0, keys.to(model.dtype), values.to(model.dtype))
            self.engine.start_slot(row, length, length)
            self.engine.steer_slot(row, steering if row != 2 else None)

    def logits(self, steps=6, before_step=lambda step: None):
        """Logits of one slot, then of all; tokens in the last column."""
        out = torch.zeros(2 * steps, 3, self.vocabulary + 1)
        for step in range(2 * steps):
            rows = torch.tensor([1] if step < steps else [2, 0, 1])
            tokens = (rows * 71 + step * 13) % self.vocabulary
            logits, following = torch.zeros(3, self.vocabulary), torch.zeros_like(tokens)
            before_step(step)
            self.engine.step(tokens, rows, following, logits)
            out[step, :, :-1] = logits
            out[step, rows, -1] = following.float()
        assert out.isfinite().all() and out[-1].any(-1).all()
        return out


@more_than_one
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_any_number_of_threads_gives_the_same_bits(family, dtype):
    model = wide(family, dtype)
    adapter = randomised(model, strength=0.3)
    want = Run(model, 1, adapter).logits()
    for threads in {2, CORES}:
        assert torch.equal(Run(model, threads, adapter).logits(), want)


@more_than_one
def test_threads_may_change_between_two_steps():
    model = wide()
    changing = Run(model)

    def change(step):
        changing.engine.threads = 1 + step % 2

    assert torch.equal(changing.logits(before_step=change), Run(model).logits())


@pytest.mark.parametrize("count", [0, -1, CORES + 1, 1 << 40])
def test_more_threads_than_cores_are_refused(count):
    session = DecodeSession(wide())
    session.engine_choice()
    engine = C.Engine(session.binding.spec.engine_arguments(64))
    assert engine.threads == 1  # unless more are requested
    with pytest.raises(ValueError, match=f"threads is {count}, want 1 to {CORES}, the physical"):
        engine.threads = count
    with pytest.raises(TypeError):
        engine.threads = "two"
    assert engine.threads == 1


def test_physical_cores_are_those_that_the_process_may_use():
    assert 1 <= CORES <= (os.cpu_count() or 1)
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity here")
    seen = []

    def on_one_processor():  # the mask belongs to a thread
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        seen.append(C.physical_cores())

    thread = threading.Thread(target=on_one_processor)
    thread.start()
    thread.join()
    assert seen == [1]


@more_than_one
def test_two_engines_in_two_threads_of_python():
    model = wide()
    want = Run(model).logits()
    runs, got = [Run(model, 2), Run(model, 2)], [None, None]

    def work(index):
        got[index] = runs[index].logits()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(got[0], want) and torch.equal(got[1], want)


def threads_become(count):
    """Whether this many are soon alive: the system may list one that has ended a little longer."""
    for _ in range(500):
        if len(os.listdir("/proc/self/task")) == count:
            return True
        time.sleep(0.01)
    return False


@more_than_one
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_threads_end_with_their_engine():
    model = wide()
    want = Run(model).logits(steps=2)
    before = len(os.listdir("/proc/self/task"))
    runs = [Run(model, 2) for _ in range(12)]
    assert threads_become(before + 12)
    for run in runs[::3]:
        assert torch.equal(run.logits(steps=2), want)
    runs[0].engine.threads = 1
    assert threads_become(before + 11)
    del run, runs
    gc.collect()
    assert threads_become(before)


@more_than_one
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="ASan's lock may be held")
def test_the_child_of_a_fork_starts_threads_of_its_own():
    model = wide()
    want = Run(model).logits(steps=2)
    used, unused = Run(model, 2), Run(model, 2)
    first, rest = torch.tensor([1]), torch.zeros(3, used.vocabulary)
    token, following = torch.tensor([71]), torch.tensor([0])
    assert torch.equal(used.logits(steps=2), want)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks while there are threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            unused.engine.step(token, first, following, rest)
            used.engine.step(token, first, following, rest)
            same = rest[1].tolist() != [0.0] * unused.vocabulary
            del used, unused
            status = 0 if same else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(unused.logits(steps=2), want)


@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.environ.get("DIVE_SLOW_TESTS") != "1", reason="DIVE_SLOW_TESTS=1 runs it")
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_sanitizers_find_nothing(sanitizer, tmp_path):
    cmake = Path(sys.executable).parent / "cmake"
    program = str(cmake) if cmake.exists() else shutil.which("cmake")
    if program is None:
        pytest.skip("needs cmake")
    flags = f"-fsanitize={sanitizer} -fno-sanitize-recover=all -O1 -g"
    options = ["-DDIVE_MODULE=OFF", "-DDIVE_HOST_TESTS=ON", f"-DCMAKE_CXX_FLAGS={flags}"]
    options.append("-DCMAKE_BUILD_TYPE=Debug")
    run = [str(tmp_path / "dive_threads_test"), "--no-fork"]
    if sanitizer == "thread" and shutil.which("setarch"):
        run = ["setarch", "-R", *run]  # its memory map requires addresses that are not random
    for command in (
        [program, "-S", str(Path(__file__).parents[2]), "-B", str(tmp_path), *options],
        [program, "--build", str(tmp_path), "--target", "dive_threads_test", "-j", "2"],
        run,
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "0 failures" in done.stdout
