"""Shared fixtures: tiny backbones (paths, written once a session) and a folder of studies."""

import os

# set before transformers or tokenizers are imported: tests never reach for the network
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# set before torch is imported: its threads wait for each other at every small product, and on a
# machine that has other work too the same tests then take ten times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import dive

# for benchmarks, experiments, tools and tests.hard; last, as an installed wheel is tested, too
sys.path.append(str(Path(__file__).parents[1]))


LONGEST = ("test_cuda_compiled", "test_host_cuda", "test_kernels_interpreted", "test_hard",
           "test_wheel", "test_left_out", "test_step_kernel")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: of two processes none is left alone with one in the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def freeze() -> None:
    """Puts what is loaded where the collector of garbage does not look.

    Every training ends with a full collection (accelerate's): over the modules of torch and
    transformers alone it takes longer than the steps of a tiny model.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    freeze()


@pytest.hookimpl(trylast=True)  # when the fixtures of the file are gone
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path != item.path:
        freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or nanobind takes what is left at exit for a leak


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_tiny_llava

    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def tiny_llava_mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_tiny_llava

    return save_tiny_llava(tmp_path_factory.mktemp("llava_mistral"), text="mistral")


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_tiny_qwen25_vl

    return save_tiny_qwen25_vl(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_tiny_gemma3

    return save_tiny_gemma3(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def studies_folder(tmp_path: Path) -> Path:
    """A fresh folder with images/ and studies.jsonl; a test may change it."""
    from tiny import save_studies

    return save_studies(tmp_path / "studies")


@pytest.fixture(scope="session", params=["llava", "llava_mistral", "qwen", "gemma", "llama"])
def any_backbone(request: pytest.FixtureRequest) -> "dive.Backbone":
    """Each family's backbone in turn, loaded once; a test must leave it as it found it."""
    import dive

    return dive.load_backbone(request.getfixturevalue(f"tiny_{request.param}"))


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> "list[dive.Study]":
    """The studies of `studies_folder`, read once: two per patient, every third with a lateral."""
    from tiny import save_studies

    from dive.data import read_studies

    return read_studies(save_studies(tmp_path_factory.mktemp("shared")) / "studies.jsonl")
