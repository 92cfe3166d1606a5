"""Settings with which no server steers, refused before anything is served."""

from types import SimpleNamespace

import pytest

from dive.errors import DiveError
from dive.vllm.export import Exported, server_arguments
from dive.vllm.settings import ServerSteering


def test_positions_that_vllm_does_not_have(tmp_path):
    steering = ServerSteering(positions="response")
    config = SimpleNamespace(dive_steering={"positions": "response"})
    for call in (
        steering.check_served,
        lambda: ServerSteering.of_model(config),
        lambda: server_arguments([Exported(tmp_path, "", 4, "DiveX", steering)]),
    ):
        with pytest.raises(DiveError, match="positions is 'response', want 'all'"):
            call()


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
