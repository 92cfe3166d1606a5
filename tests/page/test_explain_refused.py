"""What `explain` refuses, and what it leaves out of the page and says so."""

from dataclasses import replace

import pytest
import torch
from explained import TEXTS, look
from tiny_steering import for_backbone, randomised

import dive
from dive.adapter.attach import attachment_of
from dive.backbone.structure import decoder_layers
from dive.data import Skipped
from dive.errors import DiveError
from dive.prompting.prompter import Prompter


@pytest.fixture
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava)


def test_an_adapter_of_another_backbone(llava, tiny_llama, studies):
    other = randomised(dive.load_backbone(tiny_llama))
    # also where no report is left to read
    for text in ("The lungs are clear.", "<image>"):
        with pytest.raises(DiveError, match="belongs to another backbone: architecture is"):
            look(llava, other, studies[:1], [text], on_error="skip")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_whose_numbers_are_not_finite(llava, studies, value):
    adapter = randomised(llava)
    adapter.layers["1"].up.data[3, 2] = value
    with pytest.raises(DiveError, match=r"layers\.1\.up holds numbers that are not finite"):
        look(llava, adapter, studies[:1], on_error="skip")


def test_lists_of_different_lengths(llava, studies):
    adapter = randomised(llava)
    for given, texts, indices in [(2, 1, 2), (1, 2, 1), (1, 1, 2)]:
        message = f"got {given} studies, {texts} reports, {indices} indices, want as many of each"
        with pytest.raises(DiveError, match=message):
            look(llava, adapter, studies[:given], TEXTS[:texts], indices=range(indices))
    with pytest.raises(DiveError, match="there is no study"):
        look(llava, adapter, [])
    with pytest.raises(DiveError, match="item 0 of studies is a str, want a Study"):
        look(llava, adapter, ["a.png"])
    with pytest.raises(DiveError, match="item 1 of reports is a NoneType, want a text") as error:
        look(llava, adapter, studies[:2], ["secret", None])
    assert "secret" not in str(error.value)
    with pytest.raises(DiveError, match="on_error is 'ignore', want 'fail' or 'skip'"):
        look(llava, adapter, studies[:1], on_error="ignore")


@pytest.fixture
def broken(studies_folder):
    """Four studies, of which the films of the second are gone and those of the third damaged."""
    found = dive.data.read_studies(studies_folder / "studies.jsonl")[:4]
    found[1].images[0].unlink()
    found[2].images[1].write_bytes(b"not a film")
    return found


def test_images_that_are_gone(llava, broken):
    adapter, texts = randomised(llava), [*TEXTS, TEXTS[0]]
    skipped = Skipped()
    found = look(llava, adapter, broken, texts, on_error="skip", skipped=skipped)
    assert [one["study"] for one in found["studies"]] == [0, 3]
    reasons = [entry["reason"] for entry in skipped]
    assert [entry["id"] for entry in skipped] == ["study-01", "study-02"]
    assert "1 of 1" in reasons[0] and "2 of 2" in reasons[1]
    assert not any(".png" in reason or ".jpg" in reason for reason in reasons)
    # those that are left are what they are alone
    alone = look(llava, adapter, broken[3:], texts[3:], indices=[3])
    assert alone["studies"][0]["tokens"] == found["studies"][1]["tokens"]
    assert alone["studies"][0]["probability"] == found["studies"][1]["probability"]
    with pytest.raises(DiveError, match=r"study 'study-01'.*1 of 1"):
        look(llava, adapter, broken, texts)
    assert attachment_of(llava.model) is None


def test_no_study_is_left(llava, broken):
    skipped = Skipped()
    found = look(llava, randomised(llava), broken[1:3], on_error="skip", skipped=skipped)
    assert found["studies"] == [] and len(skipped) == 2 and found["layers"] == [0, 1, 2]


def test_a_report_with_a_special_token(llava, studies):
    texts = ["No <image> effusion.", "The lungs are clear."]
    skipped = Skipped()
    found = look(llava, randomised(llava), studies[:2], texts, on_error="skip", skipped=skipped)
    assert [one["study"] for one in found["studies"]] == [1]
    (entry,) = skipped
    assert entry["id"] == "study-00" and "special token" in entry["reason"]
    assert "effusion" not in entry["reason"]
    with pytest.raises(DiveError, match="study 'study-00': the report holds the special token"):
        look(llava, randomised(llava), studies[:2], texts)


def test_a_report_must_fit_the_context(tiny_llama, studies, monkeypatch):
    """The end of the turn is predicted and not read: it may stand right after the context."""
    backbone = dive.load_backbone(tiny_llama)
    adapter, cases = randomised(backbone), for_backbone(backbone, studies)[:2]
    prompter = Prompter(backbone)
    lengths = [
        prompter.encode(study)["input_ids"].shape[1] + len(prompter.response_of(text, "").ids) - 1
        for study, text in zip(cases, TEXTS, strict=False)
    ]
    assert lengths[1] != lengths[0]
    long = lengths.index(max(lengths))
    wanted = look(backbone, adapter, cases)
    config = backbone.model.config
    monkeypatch.setattr(config, "max_position_embeddings", max(lengths))
    assert look(backbone, adapter, cases) == wanted
    monkeypatch.setattr(config, "max_position_embeddings", max(lengths) - 1)
    forwards = []
    handle = decoder_layers(backbone.model)[0].register_forward_pre_hook(
        lambda *_: forwards.append(1)
    )
    with pytest.raises(DiveError, match=rf"{cases[long].id}.*prompt and report have"):
        look(backbone, adapter, [cases[long]], [TEXTS[long]])
    assert forwards == []  # the head was checked before
    handle.remove()
    skipped = Skipped()
    found = look(backbone, adapter, cases, on_error="skip", skipped=skipped)
    assert [one["study"] for one in found["studies"]] == [1 - long]
    assert [entry["id"] for entry in skipped] == [cases[long].id]
    assert found["studies"][0]["probability"] == wanted["studies"][1 - long]["probability"]


def test_numbers_of_the_model_that_are_not_finite(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava)
    adapter = randomised(backbone)
    prompter = Prompter(backbone)
    mine, others = (set(prompter.response_of(text, "").ids) for text in TEXTS[:2])
    token = next(one for one in sorted(mine - others) if one > 80)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[token] = float("nan")
    adapter.metadata["weights"] = None  # or it would warn of other weights
    skipped = Skipped()
    found = look(backbone, adapter, studies[:2], on_error="skip", skipped=skipped)
    assert [one["study"] for one in found["studies"]] == [1]
    assert "study-00" in skipped.entries[0]["reason"]
    assert "not finite over this report" in skipped.entries[0]["reason"]


def test_a_placeholder_is_a_text_like_any_other(llava, studies):
    """A method that wrote "nan" or "-" wrote that; only references may be absent."""
    study = replace(studies[0], findings=None)
    found = look(llava, randomised(llava), [study, study], ["nan", "-"])
    assert ["".join(one["tokens"][:-1]) for one in found["studies"]] == ["nan", "-"]
