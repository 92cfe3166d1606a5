"""The decode engine on a GPU: precision, graphs, adapters, batches and whole answers.

Skipped without a GPU. test_gpu_rehearsal.py runs it on a CPU (DIVE_REHEARSE_GPU=1), where the
engine's kernels are those of the CPU; test_host_cuda.py runs the CUDA kernels on the host.
"""

import contextlib
import copy
import itertools
import os
from unittest import mock

import pytest
import torch
from tiny_decoders import FAMILIES, distance, forced, small_for_gpu, steered, stepwise_logits
from tiny_steering import randomised
from transformers import LlamaConfig, LlamaForCausalLM

from dive.decode import DecodeSession, native
from dive.decode.spec import DecoderSpec

REHEARSAL = os.environ.get("DIVE_REHEARSE_GPU") == "1"
if not REHEARSAL:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device", allow_module_level=True)
    if not (native.build_info() or {}).get("cuda"):
        pytest.skip("dive._C was built without CUDA", allow_module_level=True)
elif not native.available():
    pytest.skip("dive._C is not built", allow_module_level=True)

DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)
HALVES = (torch.bfloat16,) if REHEARSAL else (torch.bfloat16, torch.float16)
TILES = not REHEARSAL  # the CPU's engine has no products by tiles
PROMPT, STEPS = 24, 256 if not REHEARSAL else 16


def small(family: str, dtype: torch.dtype = torch.float32):
    return small_for_gpu(family, dtype, num_hidden_layers=3).to(DEVICE)


def wide(dtype: torch.dtype):
    """A decoder of real widths and few layers: clusters, slices and splits as in a large model."""
    torch.manual_seed(0)
    size = {"hidden_size": 4096, "intermediate_size": 14336}
    if REHEARSAL:
        size = {"hidden_size": 96, "intermediate_size": 104}
    config = LlamaConfig(
        **{**size, "num_hidden_layers": 2},
        vocab_size=32000 if not REHEARSAL else 96,
        num_attention_heads=32 if not REHEARSAL else 4,
        num_key_value_heads=8 if not REHEARSAL else 2,
        max_position_embeddings=4096,
    )
    with DEVICE:  # 700 million numbers take a CPU's thread seven seconds to draw
        model = LlamaForCausalLM(config)
    return model.eval().to(dtype)


def random_ids(rows: int, tokens: int, vocabulary: int = 96):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(2, vocabulary, (rows, tokens), generator=generator).to(DEVICE)


def engine_logits(session: DecodeSession, ids, adapters=()):
    """Logits [steps, rows, V] of a batch from empty caches; two runs use and reuse a graph."""
    count, steps = ids.shape
    assert session.engine_choice().engine == "dive._C", session.engine_choice()
    rows = session.binding.cache
    rows.reserve(count, steps)
    for row in range(count):
        rows.engine.start_slot(row, 0, 0)
    for row, adapter in enumerate(adapters):
        rows.engine.steer_slot(row, session.binding.steering(adapter))
    every = []
    for step in range(steps):
        out = torch.zeros(count, rows.spec.vocabulary, device=DEVICE)
        following = rows.step(torch.arange(count), ids[:, step].contiguous(), out)
        assert torch.equal(following, out.argmax(-1))
        every.append(out)
    return torch.stack(every)


def plain_loss(model, ids, first: int, truth) -> float:
    """How far transformers is from the truth [., V] of the tokens from `first` on, in the model's
    dtype: in one prefill or token by token, whichever is further, as its order of sums is luck."""
    with torch.no_grad():
        whole = model(input_ids=ids).logits[0, first:]
    single = stepwise_logits(model, ids, first)
    return max(distance(whole, truth), distance(single, truth))


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_logits_lose_no_more_than_those_of_transformers(family, with_adapter):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = small(family)
    exact = copy.deepcopy(model).double()
    adapter = randomised(model, strength=0.3) if with_adapter else None
    ids = random_ids(1, PROMPT + STEPS)
    with torch.no_grad(), steered(exact, adapter):
        truth = exact(input_ids=ids).logits[0, PROMPT:]
    got = forced(DecodeSession(model), ids, PROMPT, adapter)
    with steered(model, adapter):
        lost = plain_loss(model, ids, PROMPT, truth)
    # a few units in the last place for what is no sum: exponentials, roots, the tables of angles
    assert distance(got, truth) <= 2 * lost + 16 * torch.finfo(torch.float32).eps
    assert lost < 1e-4, "it is the truth that both are held against"


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "wide"])
def test_half_precision_loses_no_more_than_transformers(family, dtype, with_adapter):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = wide(dtype) if family == "wide" else small(family, dtype)
    exact = copy.deepcopy(model).float()
    adapter = randomised(model, strength=0.3) if with_adapter else None
    ids = random_ids(1, PROMPT + STEPS, model.config.get_text_config().vocab_size)
    with torch.no_grad(), steered(exact, adapter):
        truth = exact(input_ids=ids).logits[0, PROMPT:]
    got = forced(DecodeSession(model), ids, PROMPT, adapter)
    with steered(model, adapter):
        lost = plain_loss(model, ids, PROMPT, truth)
    assert distance(got, truth) <= 1.2 * lost


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 16, 33, 64] if not REHEARSAL else [1, 5])
def test_rows_of_a_batch_are_what_they_are_alone(count):
    """Each row with its own adapter or none; products by tensor cores from five rows on."""
    model = wide(HALVES[0])
    adapters = [randomised(model, seed=s, strength=0.4) for s in (1, 2)] + [None]
    session = DecodeSession(model)
    ids = random_ids(count, 6, model.config.vocab_size)
    own = [adapters[row % 3] for row in range(count)]
    together = engine_logits(session, ids, own)
    exact = copy.deepcopy(model).float()
    for row in range(min(count, 3)):
        one, adapter = ids[row : row + 1], own[row]
        alone = engine_logits(session, one, [adapter])
        bound = 2 * lost_in_rows(model, exact, one, adapter)[1]
        assert distance(together[:, row], alone[:, 0]) <= bound


def lost_in_rows(model, exact, ids, adapter):
    """Logits [tokens, V] of the exact model, and how far the other's are from them."""
    with torch.no_grad(), steered(exact, adapter):
        truth = exact(input_ids=ids).logits[0]
    with torch.no_grad(), steered(model, adapter):
        return truth, distance(model(input_ids=ids).logits[0], truth)


@contextlib.contextmanager
def planned(plan: str):
    """Sessions that are made meanwhile divide their products so."""
    engine_arguments = DecoderSpec.engine_arguments

    def described(self, positions):
        return engine_arguments(self, positions) | {"tile_plan": plan}

    with mock.patch.object(DecoderSpec, "engine_arguments", described):
        yield


@pytest.mark.skipif(not TILES, reason="the CPU's engine has no products by tiles")
@pytest.mark.parametrize("count", [8, 16, 32, 64])
def test_products_divided_otherwise_lose_no_more(count):
    model = wide(HALVES[0])
    exact = copy.deepcopy(model).float()
    ids = random_ids(count, 4, model.config.vocab_size)
    truths = [lost_in_rows(model, exact, ids[row : row + 1], None) for row in (0, count - 1)]
    for plan in ("bytes", "waves", "small", "small_short"):
        with planned(plan):
            got = engine_logits(DecodeSession(model), ids)
        for row, (truth, lost) in zip((0, count - 1), truths, strict=True):
            assert distance(got[:, row], truth) <= 1.5 * lost, plan


@pytest.mark.parametrize("dtype", [torch.float32, HALVES[0]])
def test_every_kernel_of_the_engine(dtype):
    """Small, for a run under compute-sanitizer; test_host_cuda.py counts what it launches."""
    torch.backends.cuda.matmul.allow_tf32 = False

    def check(counts, plan="bytes", **sizes):
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
        model = small_for_gpu("qwen3", dtype, num_hidden_layers=1, **heads | sizes).to(DEVICE)
        adapter = randomised(model, strength=0.3)
        exact = copy.deepcopy(model).double()
        ids = random_ids(max(counts), 2)  # the second step is a graph
        last = [lost_in_rows(model, exact, ids[count - 1 : count], adapter) for count in counts]
        with planned(plan) if TILES else contextlib.nullcontext():
            session = DecodeSession(model)
            for count, (truth, lost) in zip(counts, last, strict=True):
                got = engine_logits(session, ids[:count], [adapter] * count)
                bound = 2 * lost + 16 * torch.finfo(torch.float32).eps
                assert distance(got[:, -1], truth) <= bound, (count, plan, sizes)
            return session, adapter

    session, adapter = check((1, 2, 4, 8, 16, 32, 64, 65))  # a product of each kind, and of a rest
    assert forced(session, random_ids(1, 12), 10, adapter).isfinite().all()  # a prompt's cache
    for width, groups in itertools.product((24, 72, 136), (1, 2, 4)):
        check((1,), head_dim=width, num_key_value_heads=4 // groups)
    if TILES and dtype != torch.float32:
        check((16, 32), "small_short")


def test_two_runs_are_equal_and_adapters_change_between_replays():
    model = wide(HALVES[0])
    session = DecodeSession(model)
    ids = random_ids(2, 8, model.config.vocab_size)
    first = randomised(model, seed=1, strength=0.4)
    second = randomised(model, seed=2, strength=0.4)
    one = engine_logits(session, ids, [first, second])
    other = engine_logits(session, ids, [second, first])
    assert torch.equal(one, engine_logits(session, ids, [first, second]))
    plain = engine_logits(session, ids)
    assert distance(one, plain) > 1e-2 and distance(one, other) > 1e-2
    session.binding.cache.engine.steer_slot(0, None)
    assert torch.equal(plain, engine_logits(session, ids))


@pytest.mark.parametrize("context", [70, 1000, 3000] if not REHEARSAL else [70])
def test_long_contexts_are_cut_into_shares(context):
    model = wide(HALVES[0])
    exact = copy.deepcopy(model).float()
    ids = random_ids(1, context + 4, model.config.vocab_size)
    with torch.no_grad():
        truth = exact(input_ids=ids).logits[0, context:]
    got = forced(DecodeSession(model), ids, context)
    # four tokens: how near either comes is luck, more than over many
    assert distance(got, truth) <= 1.5 * plain_loss(model, ids, context, truth)


@pytest.mark.parametrize("sample", [False, True])
def test_generate_writes_what_transformers_writes(sample):
    """In float32 without TF32; random models tie now and then, and from there on all is another
    answer: two draws of three, nine tokens of ten."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = small("gemma3")
    adapter = randomised(model, strength=0.3)
    ids = random_ids(3, 12)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    how = {"max_new_tokens": 40, "do_sample": sample, "eos_token_id": 7, "pad_token_id": 0}
    session = DecodeSession(model, adapter)
    same = []
    for draw in range(3):
        ids = ids.roll(1, 1)
        torch.manual_seed(draw)
        with steered(model, adapter):
            want = model.generate(input_ids=ids, attention_mask=mask, **how)
        torch.manual_seed(draw)
        got = session.generate(input_ids=ids, attention_mask=mask, **how)
        assert session.engine_choice(**how).engine == "dive._C"
        length = min(got.shape[1], want.shape[1])
        same.append(float((got[:, :length] == want[:, :length]).float().mean()))
    assert sorted(same)[1] > 0.9, same


@pytest.mark.skipif(REHEARSAL, reason="there are no streams on a CPU")
def test_the_engine_works_on_torchs_current_stream():
    model = small("llama", HALVES[0])
    session = DecodeSession(model)
    ids = random_ids(1, 12)
    want = engine_logits(session, ids)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what is put behind must wait for it
        late = (ids + 0).contiguous()
        got = engine_logits(session, late)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(got, want)
    with pytest.raises(RuntimeError, match="cannot be captured"):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            session.binding.cache.step(torch.tensor([0]), ids[:, 0].contiguous())


@pytest.mark.skipif(REHEARSAL, reason="there is no memory of a GPU")
def test_no_second_copy_of_the_weights(alone):
    model = wide(HALVES[0])
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    session = DecodeSession(model)
    engine_logits(session, random_ids(1, 4, model.config.vocab_size))
    torch.cuda.synchronize()
    assert before - torch.cuda.mem_get_info()[0] < weights / 4
