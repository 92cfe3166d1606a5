"""A backbone without weights makes the prompts of the whole one, and never a forward."""

import pytest
import torch
from tiny import save_studies, save_tiny_llama
from tiny_more import FAMILIES

from dive.adapter import SteeringAdapter, SteeringConfig
from dive.backbone.load import load_backbone
from dive.backbone.without_weights import load_without_weights
from dive.data.open import open_studies
from dive.errors import DiveError
from dive.prompting.prompter import Prompter


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompts_are_those_of_the_whole_backbone(family, tmp_path):
    folder = FAMILIES[family](tmp_path / "model")
    whole = Prompter(load_backbone(folder, device="cpu"))
    bare = Prompter(load_without_weights(folder))
    for study in open_studies(save_studies(tmp_path / "studies") / "studies.jsonl", target=None):
        wanted, made = whole.encode(study), bare.encode(study)
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    assert bare.metadata() == whole.metadata()
    assert (bare.max_length, bare.pad_token_id) == (whole.max_length, whole.pad_token_id)
    assert all(one.device.type == "meta" for one in bare.backbone.model.parameters())


def test_an_adapter_is_refused_by_the_facts_and_its_weights_are_unknown(tmp_path, recwarn):
    folder = save_tiny_llama(tmp_path / "model")
    adapter = SteeringAdapter(SteeringConfig(rank=2), load_backbone(folder, device="cpu"))
    bare = load_without_weights(folder)
    adapter.check_backbone(bare)
    assert not [one for one in recwarn if "the backbone" in str(one.message)]
    adapter.metadata["backbone"]["hidden_size"] = 4096
    with pytest.raises(DiveError, match="hidden_size is 32 here and was 4096"):
        adapter.check_backbone(bare)


def test_generation_settings_are_read_without_their_own_file_too(tmp_path):
    folder = save_tiny_llama(tmp_path / "model")
    (folder / "generation_config.json").unlink()
    whole, bare = load_backbone(folder, device="cpu"), load_without_weights(folder)
    assert bare.model.generation_config.to_dict() == whole.model.generation_config.to_dict()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DiveError, match=r"no config\.json here"):
        load_without_weights(tmp_path)
