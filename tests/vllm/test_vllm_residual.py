"""Decoder layers whose residual is not to be added are told from the others, and refused."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

import tiny
import torch
import transformers
from torch import nn
from vllm_engines import WIDTH, Served, on_cpu

import dive
from dive.errors import DiveError
from dive.vllm.decoder import adds_residual
from dive.vllm.models import _check_server

on_cpu()

pytestmark = pytest.mark.vllm


class _Norm(nn.Module):
    def forward(self, x, residual=None):
        raise AssertionError("it is asked, and not run")


class _Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = _Norm()


class _Adding(_Layer):
    """As of Llama."""

    def forward(self, positions, hidden_states, residual, **more):
        if residual is None:
            residual = hidden_states
            hidden_states = self.norm(hidden_states)
        else:
            hidden_states, residual = self.norm(hidden_states, residual=residual)
        return hidden_states, residual


class _Replacing(_Layer):
    """As of Cohere: what was the residual is not looked at."""

    def forward(self, positions, hidden_states, residual):
        residual = hidden_states
        hidden_states, residual = self.norm(hidden_states, residual)
        return residual + hidden_states, residual


class _Whole(_Layer):
    """As of StableLM."""

    def forward(self, positions, hidden_states):
        residual = hidden_states
        return residual + self.norm(hidden_states), residual


class _Otherwise(_Layer):
    """It computes with its positions first."""

    def forward(self, positions, hidden_states, residual):
        return self.norm(hidden_states + positions.sum(), residual)


@pytest.mark.parametrize(
    ("kind", "adds"), [(_Adding, True), (_Replacing, False), (_Whole, False), (_Otherwise, False)]
)
def test_whether_a_layer_adds_its_residual(kind, adds):
    layer = kind()
    assert adds_residual(layer) is adds
    with pytest.raises(AssertionError, match="not run"):
        layer.norm(torch.zeros(1))  # no hook is left


FAMILIES = {
    "StableLm": {"num_key_value_heads": 4},
    "Exaone4": {
        "num_key_value_heads": 4,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 2,
    },
    "Cohere": {},
}


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=() if one == "StableLm" else pytest.mark.slow) for one in FAMILIES],
)
def test_a_family_whose_layers_do_not_is_refused(family, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=256,
        max_position_embeddings=512,
        **FAMILIES[family],
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.save_pretrained(tmp_path / "model")
    tiny.llama3_tokenizer().save_pretrained(tmp_path / "model")
    served = Served(tmp_path, SimpleNamespace(model=model))
    served.add("A", dive.SteeringAdapter(dive.SteeringConfig(rank=2), model))
    with (
        served.engine(skip_tokenizer_init=True) as engine,
        # vLLM runs its model at the start on a GPU, and here with the first request
        pytest.raises(DiveError, match="DecoderLayer of vLLM returned something else"),
    ):
        served.generate(engine, [(served.tokens([5, 6, 7]), "A")])


def test_a_family_that_vllm_sets_up_by_its_name_is_refused():
    lora = SimpleNamespace(target_modules=["dive_steer"])
    for name, refused in (("DiveGptOssForCausalLM", True), ("DiveLlamaForCausalLM", False)):
        config = SimpleNamespace(
            lora_config=lora,
            parallel_config=None,
            compilation_config=None,
            model_config=SimpleNamespace(architectures=[name]),
        )
        if refused:
            with pytest.raises(DiveError, match="vLLM finds settings of GptOssForCausalLM by that"):
                _check_server(config)
        else:
            _check_server(config)
