"""--mm-processor-kwargs of the printed line: an image has the tokens of the adapter's budget."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

import tiny
from tiny_steering import randomised
from vllm_engines import Served, on_cpu, write_backbone

import dive
from dive.prompting.prompter import Prompter
from dive.vllm.serving import prompting_of

on_cpu()

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_the_budget_of_qwen(tmp_path):
    path = write_backbone("Qwen2.5-VL", tmp_path / "model")
    served = Served(tmp_path, dive.load_backbone(path, dtype="float32"))
    adapter = randomised(served.backbone, rank=4, strength=0.3)
    adapter.metadata["max_image_tokens"] = 6
    served.add("A", adapter)
    prompting = prompting_of(adapter, str(path))
    prompter = Prompter(served.backbone, max_image_tokens=6)
    film = tiny.draw_film(1, size=(200, 150), mode="RGB")
    study = dive.Study(id="1", images=(film,))
    wanted = prompter.encode(study)
    free = Prompter(served.backbone, max_image_tokens=None).encode(study)
    assert wanted["input_ids"].shape[1] < free["input_ids"].shape[1]  # the budget matters
    with served.engine(mm_processor_kwargs=prompting.image_settings) as engine:
        from vllm import SamplingParams

        [done] = engine.generate(
            [{"prompt": prompter.render(study), "multi_modal_data": {"image": film}}],
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True),
            lora_request=served.lora("A"),
            use_tqdm=False,
        )
    assert done.prompt_token_ids == wanted["input_ids"][0].tolist()
    [report] = dive.generate(
        served.backbone, [study], adapter=adapter, max_new_tokens=8, eos_token_id=None
    )
    count = len(report.token_ids)
    assert count and list(done.outputs[0].token_ids)[:count] == report.token_ids
