"""Why dive's middleware refuses other contents under an old name and path: what vLLM does then.

Where these fail, vLLM has mended it, and `dive.vllm.middleware` may load in place.
"""

import shutil

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from vllm_engines import on_cpu, serve

on_cpu()

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_the_prefix_cache_gives_states_of_the_old_contents(tmp_path):
    from vllm.lora.request import LoRARequest

    served = serve("Llama", tmp_path)
    request = served.tokens([5 + index % 50 for index in range(200)])
    old, new = (served.expected(request, name) for name in "AB")
    assert old.ids != new.ids or old.scores != new.scores
    folder = tmp_path / "moving"
    shutil.copytree(served.exported["A"].folder, folder)
    served.exported["moving"] = served.exported["A"]

    def ask(engine, **more):
        lora = LoRARequest("moving", 9, str(folder), **more)
        served.lora = lambda name: lora
        engine.llm_engine.add_lora(lora)
        return served.generate(engine, [(request, "moving")])[0]

    with served.engine(enable_prefix_caching=True, block_size=32) as engine:
        first = ask(engine)
        assert first.ids == old.ids
        for file in served.exported["B"].folder.glob("adapter_*"):
            shutil.copy(file, folder / file.name)
        second = ask(engine, load_inplace=True)
        assert second.cached > 0  # blocks that the old contents made
        apart = max(abs(a - b) for a, b in zip(second.scores, new.scores, strict=True))
        assert second.ids != new.ids or apart > 1e-3
        engine.llm_engine.reset_prefix_cache()
        third = ask(engine, load_inplace=True)
        assert third.ids == new.ids  # the adapter itself was replaced
