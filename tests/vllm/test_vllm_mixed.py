"""A thousand requests with five adapters and none: each has the text of its own adapter."""

import random

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from tiny_steering import randomised
from vllm_engines import check_equal, on_cpu, serve

on_cpu()

pytestmark = pytest.mark.vllm

WORDS = ("heart", "lungs", "pleural", "effusion", "right", "left", "small", "clear", "no", "chest")


def test_none_is_mixed_and_none_unsteered(tmp_path):
    served = serve("Llama", tmp_path)
    for index, name in enumerate("CDE"):
        served.add(name, randomised(served.backbone, seed=3 + index, rank=7, strength=0.3))
    drawn = random.Random(0)
    prompts = [
        served.text(" ".join(drawn.choices(WORDS, k=drawn.randint(2, 12)))) for _ in range(20)
    ]
    names = (None, *served.adapters)
    wanted = {
        (index, name): served.expected(prompt, name, 8)
        for index, prompt in enumerate(prompts)
        for name in names
    }
    # so that any mix would be seen, by tokens or by their log-probabilities
    for index in range(len(prompts)):
        kinds = {tuple(round(score, 2) for score in wanted[index, name].scores) for name in names}
        assert len(kinds) == len(names)
    chosen = [drawn.choice(list(wanted)) for _ in range(1000)]
    batch = [(prompts[index], name) for index, name in chosen]
    # 32 at once, of whose six kinds three may be in a batch
    with served.engine(max_num_seqs=32, max_loras=3) as engine:
        got = served.generate(engine, batch, 8)
    check_equal(got, [wanted[one] for one in chosen])
