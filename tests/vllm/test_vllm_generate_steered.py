"""Steered reports of vLLM: those of dive.generate with the same adapters, several in a batch."""

from dataclasses import replace

import pytest
import torch
from tiny import save_studies
from tiny_steering import randomised
from vllm_here import EAGER, needs_vllm, save_served

import dive
from dive.data.open import open_studies
from dive.errors import DiveError
from dive.vllm.engine import generate, iter_reports
from dive.vllm.running import Engine

pytestmark = needs_vllm
LENGTH = 16


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = save_studies(tmp_path_factory.mktemp("studies"), 12)
    return list(open_studies(folder / "studies.jsonl", target=None))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A folder, its backbone in transformers, and two adapters of it in folders."""
    folder = save_served("LLaVA", tmp_path_factory.mktemp("llava"))
    backbone = dive.load_backbone(folder, device="cpu")
    adapters = []
    for seed, name in enumerate(("ward-a", "ward-b")):
        adapter = randomised(backbone, seed=seed, rank=7 - 3 * seed, strength=0.3)
        adapter.save_pretrained(folder.parent / f"{folder.name}-{name}" / name)
        adapters.append(folder.parent / f"{folder.name}-{name}" / name)
    return folder, backbone, adapters


def same(reports, wanted):
    assert [replace(one, seconds=0.0, engine="") for one in reports] == [
        replace(one, seconds=0.0, engine="") for one in wanted
    ]


def test_adapters_in_one_batch(llava, studies):
    folder, backbone, (one, other) = llava
    each = [(None, one, other)[index % 3] for index in range(len(studies))]
    wanted = dive.generate(backbone, studies, adapter=each, max_new_tokens=LENGTH, batch_size=4)
    plain = dive.generate(backbone, studies, max_new_tokens=LENGTH)
    changed = [a.token_ids != b.token_ids for a, b in zip(wanted, plain, strict=True)]
    assert changed == [index % 3 > 0 for index in range(len(studies))]
    reports = generate(
        folder, studies, adapter=each, max_new_tokens=LENGTH, batch_size=4, engine_options=EAGER
    )
    same(reports, wanted)
    assert [report.adapter for report in reports] == [None, "ward-a", "ward-b"] * 4
    known = {report.adapter: report.adapter_sha256 for report in reports}
    assert known[None] is None
    for path in (one, other):
        adapter = dive.SteeringAdapter.from_pretrained(path)
        assert known[path.name] == adapter.weights_sha256()


def test_an_open_engine_takes_adapters_by_call(llava, studies):
    folder, backbone, (one, other) = llava
    first = dive.SteeringAdapter.from_pretrained(one)
    few = studies[:4]
    with Engine(folder, [first], batch_size=4, max_images=2, engine_options=EAGER) as engine:
        for adapter in (None, one, other, one):  # `other` is new to it
            wanted = dive.generate(backbone, few, adapter=adapter, max_new_tokens=LENGTH)
            same(generate(engine, few, adapter=adapter, max_new_tokens=LENGTH), wanted)
        # one that is trained further is another
        written = []
        for _ in range(2):
            wanted = dive.generate(backbone, few, adapter=first, max_new_tokens=LENGTH)
            same(generate(engine, few, adapter=first, max_new_tokens=LENGTH), wanted)
            written.append([one.token_ids for one in wanted])
            with torch.no_grad():
                for layer in first.layers.values():
                    layer.static.mul_(-1)
        assert written[0] != written[1]
        # an adapter of more rank than there is room for is refused, and the engine goes on
        wide = randomised(backbone, seed=5, rank=20)
        with pytest.raises(
            DiveError, match="rank is 20, and this engine was opened for ranks up to 8"
        ):
            generate(engine, few, adapter=wide, max_new_tokens=LENGTH)
        plain = dive.generate(backbone, few, max_new_tokens=LENGTH)
        same(generate(engine, few, max_new_tokens=LENGTH), plain)


def test_what_would_be_unsteered_or_steered_otherwise_is_refused(llava, studies, monkeypatch):
    folder, backbone, (one, _) = llava
    plain = Engine(folder, batch_size=4, max_images=2, engine_options=EAGER)
    with plain as engine, pytest.raises(DiveError, match="was opened without adapters"):
        generate(engine, studies[:2], adapter=one)
    gelu = randomised(backbone, seed=3, rank=4, activation="gelu")
    with pytest.raises(DiveError, match=r"adapter 1 wants activation 'gelu' \(in adapter 0 'silu'"):
        iter_reports(folder, studies[:2], adapter=[one, gelu])
    response = randomised(backbone, seed=3, rank=4, positions="response")
    with pytest.raises(DiveError, match="positions 'response', and in vLLM"):
        iter_reports(folder, studies[:2], adapter=response)
    strange = randomised(backbone, seed=3, rank=4)
    strange.metadata["backbone"]["num_layers"] = 99
    with pytest.raises(DiveError, match="this adapter belongs to another backbone"):
        iter_reports(folder, studies[:2], adapter=strange)
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    with pytest.raises(DiveError, match="an adapter needs dive's plugin"):
        generate(folder, studies[:2], adapter=one)


def test_an_adapter_of_other_weights_is_refused(llava, studies, tmp_path):
    folder, backbone, _ = llava
    adapter = randomised(backbone, seed=4, rank=4)
    made = dict(adapter.metadata["weights"])
    other = dive.load_backbone(save_served("LLaVA", tmp_path), device="cpu")
    for weight in other.model.parameters():
        weight.data.mul_(1.5)
    adapter.metadata["weights"] = dive.SteeringAdapter(dive.SteeringConfig(rank=1), other).metadata[
        "weights"
    ]
    assert adapter.metadata["weights"]["samples"] != made["samples"]
    with pytest.raises(DiveError, match="made on other weights"):
        generate(folder, studies[:2], adapter=adapter, engine_options=EAGER)
