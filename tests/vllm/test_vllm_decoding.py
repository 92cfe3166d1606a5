"""The settings of decoding as vLLM's, and what vLLM does not have; none of it needs vLLM."""

import math
from dataclasses import make_dataclass
from types import SimpleNamespace

import pytest
from tiny import save_tiny_llama

from dive.backbone.without_weights import load_without_weights
from dive.errors import DiveError
from dive.generation.report_writer import ReportWriter
from dive.generation.settings import checked
from dive.prompting.prompter import Prompter
from dive.vllm import installed
from dive.vllm.decoding import check_settings, own_ends, sampling_arguments
from dive.vllm.running import checked_options
from dive.vllm.writing import usable_tokens


@pytest.fixture(scope="module")
def prompter(tmp_path_factory):
    return Prompter(load_without_weights(save_tiny_llama(tmp_path_factory.mktemp("model"))))


def arguments(prompter, **given):
    backbone = prompter.backbone
    kwargs = checked(backbone.model, backbone.processor, given)
    writer = ReportWriter(backbone, None, 24, None, kwargs)
    check_settings(writer.mode(prompter), kwargs)
    return sampling_arguments(writer.config(prompter), own_ends(backbone), 7)


def test_greedy_is_the_default_with_the_ends_of_dive(prompter):
    made = arguments(prompter)
    assert (made["temperature"], made["max_tokens"], made["ignore_eos"]) == (0.0, 24, True)
    assert made["stop_token_ids"] == prompter.eos_token_ids
    assert "seed" not in made and "logit_bias" not in made and "min_tokens" not in made


def test_sampling_has_the_seed_and_only_its_own_settings(prompter):
    made = arguments(prompter, do_sample=True, temperature=0.5, top_k=9, top_p=0.8)
    wanted = {"temperature": 0.5, "top_k": 9, "top_p": 0.8, "min_p": 0.0, "seed": 7}
    assert {name: made[name] for name in wanted} == wanted
    # transformers' own default of 50 holds where nothing else is said, and None switches it off
    assert arguments(prompter, do_sample=True)["top_k"] == 50
    assert arguments(prompter, do_sample=True, top_k=None)["top_k"] == 0


def test_forbidden_tokens_are_never_written_and_ends_stay_allowed(prompter):
    end = prompter.eos_token_ids[0]
    made = arguments(prompter, suppress_tokens=[5, 6], bad_words_ids=[[7], [5], [end]])
    assert made["logit_bias"] == dict.fromkeys((5, 6, 7), -math.inf)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"num_beams": 3}, "num_beams: vLLM has no such setting"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size: vLLM has no such setting"),
        ({"logits_processor": [len]}, "logits_processor: vLLM has no such setting"),
        ({"stopping_criteria": [len]}, "stopping_criteria: vLLM has no such setting"),
        ({"stop_strings": "effusion"}, "stop_strings: vLLM has no such setting"),
        ({"custom_generate": len}, "custom_generate: vLLM has no such setting"),
        ({"begin_suppress_tokens": [4]}, "begin_suppress_tokens: vLLM cannot forbid"),
        ({"bad_words_ids": [[4, 5]]}, "bad_words_ids has 2 tokens in an entry"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p: vLLM has no such setting"),
        ({"do_sample": True, "min_p": 0.1, "top_p": 0.9}, "min_p and top_p: vLLM applies them"),
        ({"min_new_tokens": 4, "eos_token_id": 11}, "min_new_tokens: vLLM would also forbid"),
    ],
)
def test_what_vllm_does_not_have_is_refused_by_name(prompter, given, message):
    with pytest.raises(DiveError, match=message) as caught:
        arguments(prompter, **given)
    assert "engine 'transformers' or 'dive._C'" in str(caught.value)


def test_a_setting_for_sampling_of_the_checkpoint_is_refused_until_it_is_lifted(prompter):
    prompter.backbone.model.generation_config.typical_p = 0.9
    try:
        with pytest.raises(DiveError, match=r"typical_p is 0\.9, .*: give typical_p=None"):
            arguments(prompter, do_sample=True)
        assert arguments(prompter, do_sample=True, typical_p=None)["seed"] == 7
        assert "seed" not in arguments(prompter)  # greedy decoding ignores it, as everywhere
    finally:
        prompter.backbone.model.generation_config.typical_p = None


def test_settings_at_their_defaults_are_no_requests(prompter):
    same = arguments(prompter)
    assert arguments(prompter, num_beams=1, use_cache=True, repetition_penalty=1.0) == same


def test_a_shortest_report_waits_for_the_ends_of_dive(prompter):
    assert arguments(prompter, min_new_tokens=4)["min_tokens"] == 4


@pytest.mark.parametrize(
    "values, usable",
    [
        ([-0.5, -0.1], 2),
        ([-0.5, math.nan, -0.1], 1),
        ([math.inf], 0),
        ([-1.0, -math.log(100)], 1),  # all of 100 logits are the same
        ([-1.0, -math.log(100) + 1e-3], 2),
        ([], 0),
    ],
)
def test_unusable_logits_are_seen_by_the_most_likely_token(values, usable):
    assert usable_tokens(values, 100) == usable


def stand_in(version, **more):
    """A module called vllm."""
    return SimpleNamespace(__version__=version, **more)


def test_without_vllm_the_error_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(installed, "import_module", missing)
    with pytest.raises(DiveError, match=r'pip install "dive-mrg\[vllm\]"'):
        installed.check_installed()


def test_an_old_vllm_and_one_whose_names_moved_are_refused(monkeypatch):
    monkeypatch.setattr(installed, "import_module", lambda name: stand_in("0.31.2"))
    with pytest.raises(DiveError, match=r"vLLM is 0\.31\.2, want 0\.32 or newer"):
        installed.check_installed()
    monkeypatch.setattr(installed, "import_module", lambda name: stand_in("0.40.0", LLM=1))
    with pytest.raises(DiveError, match=r"vLLM 0\.40\.0 has no vllm\.SamplingParams"):
        installed.check_installed()


def test_a_backbone_device_or_option_that_vllm_does_not_have(monkeypatch):
    class Registry:
        @staticmethod
        def get_supported_archs():
            return {"LlamaForCausalLM"}

    names = {
        "__version__": "0.32.0",
        "ModelRegistry": Registry,
        "current_platform": SimpleNamespace(device_type="cuda"),
    }
    monkeypatch.setattr(installed, "import_module", lambda name: SimpleNamespace(**names))
    config = SimpleNamespace(architectures=["NovelForCausalLM"], model_type="novel")
    with pytest.raises(DiveError, match=r"vLLM 0\.32\.0 has no model for NovelForCausalLM"):
        installed.check_architecture("a folder", config)
    installed.check_device("auto")
    installed.check_device("cuda")
    with pytest.raises(DiveError, match="device is 'cpu', and this vLLM computes on 'cuda'"):
        installed.check_device("cpu")
    with pytest.raises(DiveError, match="device is 'cuda:1', and vLLM chooses its GPUs itself"):
        installed.check_device("cuda:1")


def test_options_that_dive_has_are_refused(monkeypatch):
    known = make_dataclass("EngineArgs", ["max_model_len", "dtype"])
    monkeypatch.setattr(
        installed, "import_module", lambda name: stand_in("0.32.0", EngineArgs=known)
    )
    assert checked_options({"max_model_len": 99}) == {"max_model_len": 99}
    with pytest.raises(DiveError, match="engine_options has 'dtype': give dtype instead"):
        checked_options({"dtype": "float16"})
    with pytest.raises(DiveError, match=r"engine_options has 'speed', and vLLM 0\.32\.0 has no"):
        checked_options({"speed": 9})
