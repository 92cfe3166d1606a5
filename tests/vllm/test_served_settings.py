"""Settings with which no server steers, refused before anything is served."""

from types import SimpleNamespace

import pytest

from dive.adapter.config import SteeringConfig
from dive.errors import DiveError
from dive.vllm.settings import ServerSteering


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"positions": "response"}, "an unknown setting 'positions'"),
        ({"activation": "relu"}, "activation is 'relu', want one of"),
        ({"eps": 0}, "eps is 0, want a number > 0"),
        ({"other_weights": 1}, "other_weights is 1, want true or false"),
        ("silu", "dive_steering is 'silu', want an object"),
    ],
)
def test_settings_of_a_server(given, says):
    with pytest.raises(DiveError, match=says):
        ServerSteering.of_model(SimpleNamespace(dive_steering=given))


def test_an_adapter_of_the_response_alone_has_no_server():
    with pytest.raises(DiveError, match="positions 'response', and in vLLM"):
        ServerSteering.of_adapter(SteeringConfig(positions="response"))


def test_adapters_of_requests_that_name_none():
    pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
    from vllm_engines import on_cpu

    on_cpu()
    from dive.vllm.models import _check_server

    lora = SimpleNamespace(target_modules=["dive_steer"], default_mm_loras={"image": "x"})
    given = SimpleNamespace(
        lora_config=lora, parallel_config=None, compilation_config=SimpleNamespace()
    )
    with pytest.raises(DiveError, match="--default-mm-loras steers requests that name no adapter"):
        _check_server(given)
    lora.default_mm_loras = None
    _check_server(given)
