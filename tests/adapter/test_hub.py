"""Model card, upload (without a network) and the warning for data under an agreement."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import data_trees
import huggingface_hub
import pytest

import dive
from dive.adapter.hub import model_card
from dive.data import open_studies, read_studies
from dive.errors import DiveError
from dive.files.json_lines import write_jsonl


class Hub:
    """A stand-in for HfApi that keeps what would have been sent."""

    refuses: Exception | None = None
    made: list = []  # noqa: RUF012

    def __init__(self, token=None):
        self.token, self.files, self.repository, self.upload = token, {}, None, None
        Hub.made.append(self)

    def create_repo(self, repo_id, **options):
        if Hub.refuses is not None:
            raise Hub.refuses
        self.repository = (repo_id, options)

    def upload_folder(self, *, folder_path, **options):
        self.upload = options
        self.files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        return type("Commit", (), {"commit_url": "https://hub.example/commit/1"})()


@pytest.fixture
def hub(monkeypatch):
    Hub.made, Hub.refuses = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


@pytest.fixture(scope="module")
def distilled(tiny_llava, studies):
    """Two adapters: of studies without an origin, and of studies as those of MIMIC-CXR."""
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    config = dive.DistillConfig(rank=2, steps=1, batch_size=2, calibration_studies=1)
    marked = [replace(study, origin="mimic-cxr") for study in studies[:4]]
    return [
        dive.distill(backbone, some, 1, config, progress=False) for some in (studies[:4], marked)
    ]


def test_an_adapter_remembers_where_its_studies_are_from(distilled, tiny_llava, studies):
    assert [one.metadata["distillation"]["sources"] for one in distilled] == [[], ["mimic-cxr"]]
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    config = dive.DistillConfig(rank=2, steps=1, batch_size=2, calibration_studies=1)
    shown = [replace(studies[5], origin="chexpert-plus", patient="other")]
    adapter = dive.distill(backbone, studies[:2], shown, config, progress=False)
    assert adapter.metadata["distillation"]["sources"] == ["chexpert-plus"]


def test_what_is_uploaded_loads_again(distilled, hub, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        address = distilled[0].push_to_hub("me/films", token="t", revision="v1")
    assert address == "https://hub.example/commit/1"
    sent = hub.made[0]
    assert sent.token == "t" and sent.repository == (
        "me/films",
        {"private": True, "exist_ok": True},
    )
    assert sent.upload["repo_id"] == "me/films" and sent.upload["revision"] == "v1"
    assert sent.files.keys() == {"adapter_config.json", "adapter.safetensors", "README.md"}
    for name, content in sent.files.items():
        (tmp_path / name).write_bytes(content)
    again = dive.SteeringAdapter.from_pretrained(tmp_path)
    assert all((again.state_dict()[n] == t).all() for n, t in distilled[0].state_dict().items())


def test_no_path_of_a_disk_is_uploaded(distilled, hub, tiny_llava):
    distilled[0].push_to_hub("me/films")
    sent = hub.made[0].files
    settings = json.loads(sent["adapter_config.json"])
    assert settings["metadata"]["backbone"]["name"] == tiny_llava.name
    assert settings["metadata"]["distillation"]["backbone"]["name"] == tiny_llava.name
    text = b"".join(sent.values())
    assert str(tiny_llava.parent).encode() not in text
    # and neither does the adapter itself
    assert distilled[0].metadata["backbone"]["name"] == tiny_llava.name


def test_the_card_says_what_it_is(distilled):
    plain, marked = map(model_card, distilled)
    for card in (plain, marked):
        assert card.startswith("---\nlibrary_name: dive-mrg\n")
        for text in ("Not for clinical use", "LlavaForConditionalGeneration", "| Preset | dive |",
                     "rank 2", "4 studies, 1 steps", "Describe the findings"):  # fmt: skip
            assert text in card
    assert "do not name their dataset" in plain and "PhysioNet" not in plain
    assert "PhysioNet" in marked and "only as the agreement allows" in marked
    for study in ("pleural effusion", "study-00"):
        assert study not in marked  # nothing of the data itself


def test_a_backbone_of_the_hub_is_linked(distilled):
    adapter = distilled[0]
    own = dict(adapter.metadata)
    try:
        adapter.metadata = own | {"backbone": own["backbone"] | {"name": "google/medgemma-4b-it"}}
        assert '---\nbase_model: "google/medgemma-4b-it"\n' in model_card(adapter)
        adapter.metadata = {"backbone": own["backbone"]}  # never distilled
        assert "| Preset" not in model_card(adapter)
    finally:
        adapter.metadata = own


def test_data_under_an_agreement_is_warned_of(distilled, hub):
    with pytest.warns(UserWarning, match="PhysioNet.*derived from that data") as caught:
        distilled[1].push_to_hub("me/films")
    assert "public" not in str(caught[0].message)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="a public repository is requested"):
        distilled[1].push_to_hub("me/films", private=False)
    assert hub.made[1].repository[1]["private"] is False


def test_a_refused_upload_is_one_clear_line(distilled, hub):
    Hub.refuses = OSError("403 Forbidden: no write access\nmore")
    with pytest.raises(DiveError, match="^me/films: .* 403 Forbidden: no write access$"):
        distilled[0].push_to_hub("me/films")


def test_origin_passes_through_json_lines(studies, studies_folder, tmp_path):
    rows = [
        {"id": s.id, "images": [str(p.absolute()) for p in s.images], "findings": s.findings,
         "origin": "mimic-cxr"}
        for s in read_studies(studies_folder / "studies.jsonl")
    ]  # fmt: skip
    write_jsonl(tmp_path / "out.jsonl", rows)
    assert {s.origin for s in read_studies(tmp_path / "out.jsonl")} == {"mimic-cxr"}
    assert {s.origin for s in open_studies(tmp_path / "out.jsonl")} == {"mimic-cxr"}
    assert {s.origin for s in studies} == {None}


def test_readers_say_which_dataset_it_is(tmp_path):
    mimic, iu, r2gen, other = (tmp_path / name for name in ("mimic", "iu", "r2gen", "other"))
    trees = {
        f"mimic-cxr:{data_trees.Mimic(mimic).root}": {"mimic-cxr"},
        f"chexpert-plus:{data_trees.Plus(tmp_path / 'plus').root}": {"chexpert-plus"},
        f"iu-xray:{data_trees.iu_kaggle(iu)}": {"iu-xray"},
        f"r2gen:{data_trees.r2gen_mimic(r2gen)}": {"mimic-cxr"},
        f"r2gen:{data_trees.r2gen_iu(other)}": {None},
    }
    for spec, origins in trees.items():
        assert {study.origin for study in open_studies(spec, target=None)} == origins, spec
