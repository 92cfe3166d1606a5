"""What is written by actors, without any Ray: groups, deaths, and what is refused beforehand."""

import sys
from types import SimpleNamespace

import pytest
from command_line import call

from dive.data import Study
from dive.errors import DiveError
from dive.generation.attempts import TRIES, Attempts
from dive.generation.ray_actor import differing
from dive.generation.ray_cluster import Cluster, RayOptions, connected


def studies(count):
    return [Study(f"s{index}", ()) for index in range(count)]


def ids(group):
    return [study.id for study in group]


def drained(attempts, died=()):
    """Every group until none waits; `died`: ids whose group dies, without a result for any."""
    groups, given_up = [], []
    while group := attempts.group():
        groups.append(ids(group))
        if set(died) & set(groups[-1]):
            given_up += ids(attempts.died(group))
    return groups, given_up


@pytest.mark.parametrize("count", [1, 2, 7, 12, 100])
@pytest.mark.parametrize("actors", [1, 2, 5])
def test_every_study_is_in_one_group(count, actors):
    groups, _ = drained(Attempts(studies(count), 4, actors))
    assert [name for group in groups for name in group] == ids(studies(count))
    assert max(map(len, groups)) <= 16
    # no actor is left without any while another has two batches
    assert len(groups) >= min(actors, -(-count // 4))


def test_who_kills_is_given_up_and_no_neighbour():
    groups, given_up = drained(Attempts(studies(40), 4, 2), died=["s5"])
    assert given_up == ["s5"]
    tried = [group for group in groups if "s5" in group]
    assert len(tried) == TRIES and tried[-1] == ["s5"]
    assert len(tried[0]) > len(tried[1]) > 1
    for study in ids(studies(40)):
        if study != "s5":  # its last group is one that nobody killed
            assert "s5" not in [group for group in groups if study in group][-1]


def test_two_killers_in_a_group_are_both_found():
    _, given_up = drained(Attempts(studies(16), 4, 1), died=["s2", "s3"])
    assert sorted(given_up) == ["s2", "s3"]


def test_a_group_that_nobody_began_counts_no_death():
    attempts = Attempts(studies(2), 1, 2)
    for _ in range(2 * TRIES):
        group = attempts.group()
        attempts.return_group(group)
    assert drained(attempts, died=["s1"])[1] == ["s1"]


def test_what_differs_between_two_nodes_is_named():
    one = {"adapter": {"parameters": "a", "form": "b"}, "prompt": "p", "versions": {"torch": "1"}}
    other = {"adapter": {"parameters": "c", "form": "b"}, "prompt": "p", "versions": {"torch": "2"}}
    assert differing(one, one) == ""
    assert differing(one, other) == "adapter (parameters), versions (torch)"
    assert differing(one, {**one, "adapter": None}) == "adapter"


REFUSED = [
    (("--actors", 2), "--actors is 2, want --ray too"),
    (("--address", "auto"), "--address is 'auto', want --ray too"),
    (("--ray", "--address", "ray://head:10001"), "--address is 'ray://head:10001', a client's"),
    (("--ray", "--actors", 0), "--actors is 0, want a whole number from 1 on"),
    (("--ray", "--gpus-per-actor", -1), "--gpus-per-actor is -1.0, want a number from 0 on"),
    (("--ray", "--device", "cuda:1"), "--device is 'cuda:1', want auto, cpu, cuda or map"),
    (("--engine-option", "a=1"), "--engine-option: want --engine vllm too, --engine is 'auto'"),
    (("--engine", "vllm", "--engine-option", "a"), "--engine-option is 'a', want NAME=VALUE"),
]


@pytest.mark.parametrize(("more", "said"), REFUSED)
def test_what_is_refused_before_anything_is_read(more, said, tmp_path):
    with pytest.raises(DiveError) as caught:
        call("generate", "--backbone", "none", "--out", tmp_path / "x", "a.png", *more)
    assert str(caught.value).startswith(said)
    assert list(tmp_path.iterdir()) == []


def test_without_ray_its_extra_is_named(tiny_llava, studies_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DiveError, match=r"ray is not installed; .*dive-mrg\[ray\]"):
        call("generate", "--backbone", tiny_llava, "--studies", studies_folder / "studies.jsonl",
             "--out", tmp_path / "x.jsonl", "--ray")  # fmt: skip


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "--address is 'local': no session of Ray can be begun on this machine: GCS is late"),
        ("head:6379", "--address is 'head:6379': no cluster of Ray answers there; want auto, "),
    ],
)
def test_a_ray_that_does_not_answer(address, said, monkeypatch):
    def init(*_, **__):
        raise Exception("GCS is\n late")

    ended = []
    pretended = SimpleNamespace(
        is_initialized=lambda: False, init=init, shutdown=lambda: ended.append(1)
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setitem(sys.modules, "ray", pretended)
    with pytest.raises(DiveError) as caught, connected(RayOptions(address), "cpu"):
        pass
    assert str(caught.value).startswith(said) and ended == [1]


def cluster_with(**resources):
    nodes = [{"Alive": True}, {"Alive": True}, {"Alive": False}]
    return SimpleNamespace(cluster_resources=lambda: resources, nodes=lambda: nodes)


def test_actors_by_what_a_cluster_has():
    def found(have, device="auto", **options):
        one = Cluster(cluster_with(**have), RayOptions(**options), device)
        return one.actors, one.gpus, one.device

    assert found({"CPU": 8}) == (2, 0, "cpu")
    assert found({"CPU": 8, "GPU": 4}) == (4, 1, "cuda")
    assert found({"CPU": 8, "GPU": 4}, gpus_per_actor=2) == (2, 2, "cuda")
    assert found({"CPU": 8, "GPU": 4}, gpus_per_actor=0.5) == (8, 0.5, "cuda")
    assert found({"CPU": 8, "GPU": 4}, device="cpu") == (2, 0, "cpu")
    assert found({"CPU": 8, "GPU": 4}, actors=3) == (3, 1, "cuda")
    with pytest.raises(DiveError, match="wants 2 GPU, and the cluster has 1"):
        found({"CPU": 8, "GPU": 1}, gpus_per_actor=2)
    with pytest.raises(DiveError, match="--device is 'cuda', and the actors have no GPU"):
        found({"CPU": 8}, device="cuda")
