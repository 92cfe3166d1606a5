"""The CUDA backend where there is no GPU: its own sources, run on the host by csrc/tests/host_cuda.

The fixture `gpu` lets a session use the engine of that build: its tensors stay on the CPU, and its
kernels run thread by thread. DIVE_SLOW_TESTS=1 adds a run under the address sanitizer.
"""

import copy
import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_decoders import (
    FAMILIES,
    SIZES,
    check_equal_logits,
    distance,
    forced,
    steered,
    stepwise_logits,
)
from tiny_decoders import small_for_gpu as small
from tiny_steering import logits as all_logits
from tiny_steering import randomised

from dive.decode import native, spec
from dive.decode.session import DecodeSession
from tests.helpers import host_builds

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / os.environ.get("DIVE_HOST_CUDA_FOLDER", "host_cuda")
VOCABULARY = SIZES["vocab_size"]
ORDERS = [("forward", 0), ("backward", 0), ("shuffled", 1), ("shuffled", 2)]

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the compiler


@pytest.fixture(scope="module")
def host_cuda():
    options = ["-DDIVE_HOST_CUDA=ON", "-DDIVE_HOST_TESTS=ON"]
    options += ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1"]
    options += ["-DDIVE_SANITIZE=ON"] if "DIVE_HOST_CUDA_FOLDER" in os.environ else []
    try:
        host_builds.build(FOLDER, ["_C_host_cuda", "dive_host_cuda_test"], *options)
    except host_builds.CannotBuild as error:
        pytest.skip(str(error))
    return host_builds.load(FOLDER, "_C_host_cuda")


@pytest.fixture
def gpu(host_cuda, monkeypatch):
    """The module; sessions that are made while it is in use run on the GPU that the host plays."""
    monkeypatch.setattr(native, "load", lambda: host_cuda)
    monkeypatch.setattr(spec.DecoderSpec, "engine_device", "cuda:0")
    monkeypatch.setitem(spec.DTYPES["cpu"], torch.float16, "float16")
    yield host_cuda
    host_cuda.host_settings()


def random_ids(rows, tokens):
    return torch.randint(2, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(3))


def run_rows(session, ids, adapters=(), rows=None):
    """Logits [steps, rows, V] of a batch from empty caches."""
    count, steps = ids.shape
    assert session.engine_choice().engine == "dive._C", session.engine_choice()
    engine = session.binding.cache.engine
    engine.reserve(count, steps)
    for row in range(count):
        engine.start_slot(row, 0, 0)
    for row, adapter in enumerate(adapters):
        engine.steer_slot(row, session.binding.steering(adapter))
    rows = torch.arange(count) if rows is None else rows
    every, following = [], torch.zeros(count, dtype=torch.long)
    for step in range(steps):
        out = torch.full((count, VOCABULARY), float("nan"))
        engine.step(ids[rows, step].contiguous(), rows, following, out)
        assert torch.equal(following, out[rows].argmax(-1))
        every.append(out)
    return torch.stack(every)


def test_the_host_build_finds_the_mistakes_that_it_is_there_to_find(host_cuda):
    program = FOLDER / "dive_host_cuda_test"
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(gpu, family, capability):
    gpu.host_settings(capability=capability, multiprocessors=16)
    model = small(family)
    adapter = randomised(model, strength=0.3)
    ids = random_ids(1, 70 + 12)  # more than one share of attention
    got = forced(DecodeSession(model), ids, 70, adapter)
    with steered(model, adapter):
        want = all_logits(model, {"input_ids": ids})[0, 70:]
    assert distance(got, want) < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_whose_logits_are_not_finite_has_no_token(gpu, value):
    """The other rows' logits are the very same, and so are those of a row that is taken over."""
    model = small("llama")
    session = DecodeSession(model)
    ids = random_ids(3, 6).clamp(max=VOCABULARY - 2)
    want = run_rows(session, ids)
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY - 1] = value
    engine, rows = session.binding.cache.engine, torch.arange(3)
    engine.reserve(3, 6)
    for row in range(3):
        engine.start_slot(row, 0, 0)
    spoilt = ids.clone()
    spoilt[1, 2:] = VOCABULARY - 1
    following, out = torch.zeros(3, dtype=torch.long), torch.zeros(3, VOCABULARY)
    for step in range(6):
        engine.step(spoilt[:, step].contiguous(), rows, following, out)
        assert (following < 0).tolist() == [False, step >= 2, False]
        assert torch.equal(out[[0, 2]], want[step][[0, 2]])
    engine.start_slot(1, 0, 0)
    for step in range(6):
        engine.step(ids[1:2, step].contiguous(), rows[1:2], following[:1], out)
        assert torch.allclose(out[1], want[step][1], atol=1e-5) and following[0] >= 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gemma3", "qwen2-window"])
def test_half_precision_loses_no_more_than_transformers(gpu, family, dtype):
    exact = small(family)
    model = copy.deepcopy(exact).to(dtype)
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    adapter = randomised(model, strength=0.3)
    ids = random_ids(1, 24 + 32)
    with steered(exact, adapter):
        truth = all_logits(exact, {"input_ids": ids})[0, 24:]
    got = forced(DecodeSession(model), ids, 24, adapter)
    with steered(model, adapter):
        theirs = stepwise_logits(model, ids, 24)
    assert distance(got, truth) <= 1.1 * distance(theirs, truth)
    assert torch.equal(got.to(dtype).float(), got)


@pytest.mark.parametrize("heads", [(4, 4), (8, 4), (8, 1), (5, 1)])
@pytest.mark.parametrize("head_dim", [8, 72, 136])
def test_heads_of_any_number_and_width(gpu, heads, head_dim):
    sizes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    model = small("qwen3", head_dim=head_dim, num_hidden_layers=1, **sizes)
    ids = random_ids(2, 5)
    got = run_rows(DecodeSession(model), ids).transpose(0, 1)
    assert distance(got, all_logits(model, {"input_ids": ids})) < 1e-5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 17, 33, 67])
def test_a_row_gives_the_same_in_batches_of_any_size(gpu, count):
    model = small("qwen2", torch.bfloat16, num_hidden_layers=1)
    adapters = [randomised(model, seed=s, strength=0.4) for s in (1, 2)] + [None]
    exact = copy.deepcopy(model).float()
    ids = random_ids(count, 3)
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    own = [adapters[row % 3] for row in range(count)]
    got = run_rows(DecodeSession(model), ids, own, rows)
    for index, adapter in enumerate(adapters[:count]):
        with steered(exact, adapter):
            want = all_logits(exact, {"input_ids": ids[index::3]})
        # row by row: one that is wrong must not hide among those that are right
        for at, row in enumerate(range(index, count, 3)):
            assert distance(got[:, row], want[at]) < 2e-2


@pytest.mark.parametrize("count", [6, 9, 17, 33])
def test_products_divided_otherwise_come_to_the_same(gpu, count, monkeypatch):
    """Up to the order of a sum, and on few processors as on many."""
    model = small("qwen2", torch.bfloat16, num_hidden_layers=1, intermediate_size=2312)
    ids = random_ids(count, 2)
    exact = all_logits(copy.deepcopy(model).float(), {"input_ids": ids}).transpose(0, 1)
    engine_arguments, ran = spec.DecoderSpec.engine_arguments, {}
    for plan in ("bytes", "waves", "small", "small_short"):
        before = gpu.host_kernels()
        with monkeypatch.context() as patch:
            patch.setattr(
                spec.DecoderSpec,
                "engine_arguments",
                lambda self, positions, plan=plan: (
                    engine_arguments(self, positions) | {"tile_plan": plan}
                ),
            )
            for processors in (4, 132):
                gpu.host_settings(multiprocessors=processors)
                got = run_rows(DecodeSession(model), ids)
                assert all(distance(got[:, row], exact[:, row]) < 2e-2 for row in range(count))
        counts = gpu.host_kernels()
        ran[plan] = {name for name in counts if counts[name] > before.get(name, 0)}
    own = ran["small_short"] - ran["small"]
    assert len(own) == (3 if 8 < count <= 32 else 0), "kernels of their own, of all outputs"
    assert ran["bytes"] == ran["waves"] == ran["small"]


def test_a_division_of_products_that_there_is_not(gpu):
    description = spec.read_decoder(small("llama")).engine_arguments(8)
    with pytest.raises(ValueError, match="tile_plan is 'wide', want bytes, waves, small or small_"):
        gpu.Engine(description | {"tile_plan": "wide"})
    with pytest.raises(ValueError, match="tile_plan is of a GPU"):
        gpu.Engine(description | {"tile_plan": "waves", "device": "cpu"})


@pytest.mark.parametrize(
    ("count", "dtype"), [(1, torch.float32), (3, torch.bfloat16), (6, torch.float16)]
)
@pytest.mark.parametrize("capability", [80, 90])
def test_no_bit_depends_on_the_order_of_the_threads(gpu, count, dtype, capability):
    model = small("gemma3", dtype)
    adapter = randomised(model, strength=0.4, norm_preserving=True)
    ids = random_ids(count, 4)
    results = []
    for order, seed in ORDERS:
        for ahead in (0, 3):
            gpu.host_settings(order=order, seed=seed, ahead=ahead, capability=capability)
            results.append(run_rows(DecodeSession(model), ids, [adapter] * count))
    assert torch.isfinite(results[0]).all()
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_attention_in_shares_does_not_depend_on_the_order_either(gpu):
    model = small("mistral", num_hidden_layers=1, sliding_window=None)
    ids = random_ids(1, 200 + 3)
    results = []
    for order, seed in ORDERS:
        gpu.host_settings(order=order, seed=seed, multiprocessors=32)
        results.append(forced(DecodeSession(model), ids, 200))
    for result in results[1:]:
        assert torch.equal(result, results[0])
    assert distance(results[0], all_logits(model, {"input_ids": ids})[0, 200:]) < 1e-5


@pytest.mark.parametrize(
    ("count", "dtype", "bound"), [(2, torch.float32, 1e-5), (6, torch.float16, 5e-3)]
)
def test_long_rows_of_weights_are_shared_by_warps(gpu, count, dtype, bound):
    model = small("llama", dtype, num_hidden_layers=1, intermediate_size=2312)
    ids = random_ids(count, 2)
    results = []
    for order, seed in ORDERS:
        gpu.host_settings(order=order, seed=seed, multiprocessors=32)
        results.append(run_rows(DecodeSession(model), ids))
    for result in results[1:]:
        assert torch.equal(result, results[0])
    want = all_logits(copy.deepcopy(model).float(), {"input_ids": ids})
    assert distance(results[0].transpose(0, 1), want) < bound


def test_what_changes_between_steps_is_read_anew_by_the_recorded_one(gpu):
    model = small("llama")
    session = DecodeSession(model)
    session.engine_choice()
    engine = session.binding.cache.engine
    ids, adapter = random_ids(2, 8), randomised(model, strength=0.4)
    engine.reserve(2, 8)
    following, out = torch.zeros(1, dtype=torch.long), torch.zeros(2, VOCABULARY)
    got = {0: [], 1: []}
    before = gpu.host_counts()["graphs"]
    engine.steer_slot(1, session.binding.steering(adapter))
    for step in range(16):  # rows take turns, with lengths of their own
        row = step % 2
        engine.step(ids[row, step // 2][None], torch.tensor([row]), following, out)
        got[row].append(out[row].clone())
    assert gpu.host_counts()["graphs"] == before + 15  # the first step runs without
    for row, own in ((0, None), (1, adapter)):
        with steered(model, own):
            want = all_logits(model, {"input_ids": ids[row][None]})[0]
        assert distance(torch.stack(got[row]), want) < 1e-5


def test_answers_are_those_of_the_host_engine(gpu, monkeypatch):
    model = small("qwen3")
    model.generation_config.pad_token_id = 0
    ids = random_ids(3, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    on_gpu = DecodeSession(model)
    got = model.generate(**batch, custom_generate=on_gpu, max_new_tokens=10)
    launched = gpu.host_counts()["launches"]
    assert launched > 0
    monkeypatch.undo()
    want = model.generate(**batch, custom_generate=DecodeSession(model), max_new_tokens=10)
    assert gpu.host_counts()["launches"] == launched
    assert torch.equal(got, want)


def test_what_runs_under_a_sanitizer_launches_every_kernel(gpu, monkeypatch):
    """In float32 and bfloat16: float16 has the same code."""
    monkeypatch.setenv("DIVE_REHEARSE_GPU", "1")
    monkeypatch.syspath_prepend(ROOT / "tests" / "gpu")
    import test_gpu_decode

    monkeypatch.setattr(test_gpu_decode, "TILES", True)
    before = gpu.host_kernels()
    for dtype in (torch.float32, torch.bfloat16):
        test_gpu_decode.test_every_kernel_of_the_engine(dtype)
    launched = {n for n, count in gpu.host_kernels().items() if count > before.get(n, 0)}

    (module,) = FOLDER.glob("_C_host_cuda*.so")
    symbols = subprocess.check_output(["nm", "-C", module], text=True)
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
    kernels = set(re.findall(r"__global__ void\s+(?:__launch_bounds__\(.*\)\s+)?(\w+)\(", sources))
    assert len(kernels) == 7
    every = re.findall(
        rf"void (?:dive::cuda::\(anonymous namespace\)::)(?:{'|'.join(kernels)})<.*", symbols
    )
    wanted = {name for name in every if "Half" not in name}
    assert len(wanted) > 50 and launched >= wanted, sorted(wanted - launched)


def test_an_adapter_is_copied_within_the_gpu_and_once(gpu):
    """Four copies per layer, of unpadded weights; a second use of the adapter copies none."""
    model = small("llama")
    session, adapter = DecodeSession(model), randomised(model, strength=0.4)
    session.engine_choice()
    engine = session.binding.cache.engine
    engine.reserve(2, 8)
    before = gpu.host_counts()
    steering = session.binding.steering(adapter)
    layers, made = list(adapter.layers.values()), gpu.host_counts()
    assert made["copies"] - before["copies"] == 4 * len(layers)
    assert made["allocations"] - before["allocations"] == len(layers)
    rank, width = layers[0].down.shape
    assert width % 64 != 0  # which the panels of a CPU are padded to
    assert {one.nbytes for one in steering if one} == {4 * (2 * rank * width + width + rank)}
    for row in range(2):
        engine.steer_slot(row, session.binding.steering(adapter))
    used = gpu.host_counts()
    assert used["copies"] - made["copies"] == 2  # of the table of each row's steerings
    assert used["bytes"] == made["bytes"]


def test_steering_of_another_device_and_with_gaps_is_refused(gpu):
    parts = (torch.zeros(3, 96), torch.zeros(3), torch.zeros(96, 3), torch.zeros(96), 0.1)
    session = DecodeSession(small("llama"))
    session.engine_choice()
    engine = session.binding.cache.engine
    engine.reserve(1, 8)
    layers = len(session.binding.spec.layers)
    with pytest.raises(ValueError, match="steering was made for cpu, want cuda:0, the engine's"):
        engine.steer_slot(0, [gpu.Steering(*parts)] * layers)
    with pytest.raises(ValueError, match=r"up has gaps, want columns one after another"):
        gpu.Steering(*parts, device="cuda:0")
    with pytest.raises(ValueError, match=r"static has dtype bfloat16, want float32"):
        gpu.Steering(*parts[:3], torch.zeros(96).bfloat16(), 0.1, device="cuda:0")


def test_neither_what_devices_share_nor_the_gpu_includes_the_cpu():
    sources = [*(ROOT / "csrc").glob("*.*"), *(ROOT / "csrc" / "cuda").glob("*.*")]
    assert len(sources) > 20
    including = {path.name for path in sources if '#include "cpu/' in path.read_text()}
    assert including == set()
    neutral = {path.name for path in sources if path.parent.name == "csrc"}
    assert "steering.h" in neutral
    for name in neutral:
        assert '#include "cuda/' not in (ROOT / "csrc" / name).read_text(), name


@pytest.mark.parametrize("other", [None, 0, 1, 95])
def test_no_token_of_equal_logits(gpu, other):
    check_equal_logits(small("llama"), 2.0, other)
    assert gpu.host_counts()["launches"] > 0


def test_memory_that_there_is_not_is_named_and_all_is_given_back(gpu):
    model = small("llama")
    before = gpu.host_counts()
    session = DecodeSession(model)
    session.engine_choice()
    engine = session.binding.cache.engine
    gpu.host_settings(memory=1 << 24)
    with pytest.raises(RuntimeError, match="out of memory: the cache of 64 sequences of 4096 tok"):
        engine.reserve(64, 4096)
    engine.reserve(2, 16)  # and the engine is none the worse
    ids = random_ids(1, 1)
    following = torch.zeros(1, dtype=torch.long)
    engine.step(ids[0], torch.tensor([1]), following)
    assert gpu.host_counts()["bytes"] > before["bytes"]
    del engine, session
    gc.collect()
    after = gpu.host_counts()
    assert (after["allocations"], after["bytes"]) == (before["allocations"], before["bytes"])


def test_sizes_that_the_kernels_do_not_take_are_refused(gpu):
    def plan(**sizes):
        return DecodeSession(small("qwen3", **sizes)).engine_choice()

    assert "its heads have 20 numbers" in plan(head_dim=20).reason
    assert "its heads have 264 numbers" in plan(head_dim=264).reason
    assert plan(intermediate_size=100).engine == "transformers"
    gpu.host_settings(capability=130)
    assert "built without kernels for its GPU" in plan().reason
    gpu.host_settings()
    description = spec.read_decoder(small("llama")).engine_arguments(8)
    with pytest.raises(ValueError, match="CUDA finds no device 1"):
        gpu.Engine(description | {"device": "cuda:1"})


@pytest.mark.skipif(os.environ.get("DIVE_SLOW_TESTS") != "1", reason="DIVE_SLOW_TESTS=1 runs it")
@pytest.mark.skipif(
    "DIVE_HOST_CUDA_FOLDER" in os.environ, reason="this is the run under the sanitizers"
)
def test_no_kernel_reads_or_writes_past_its_memory():
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    name = ["-print-file-name=libasan.so", "-print-file-name=libubsan.so"]
    libraries = [subprocess.check_output([compiler, one], text=True).strip() for one in name]
    environment = os.environ | {
        "DIVE_HOST_CUDA_FOLDER": "host_cuda-sanitized",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
