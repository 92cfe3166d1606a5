"""Logits that are not finite end one report with an error, and no other report is affected.

The right tokens are those of a run whose numbers are all finite. Then the embedding of one token is
made NaN: whoever writes it goes on from there with nothing but NaN.
"""

import json

import pytest
import torch
from tiny_decoders import check_equal_logits, small
from tiny_steering import prompts, randomised
from transformers import LogitsProcessor, LogitsProcessorList
from typer.testing import CliRunner

import dive
from dive.cli import app
from dive.data import Skipped
from dive.decode import native
from dive.decode.continuous import Request
from dive.decode.sampling import draw, generator
from dive.decode.session import DecodeSession
from dive.decode.usable_logits import NO_TOKEN, most_likely, most_likely_next, usable
from dive.generation.generate_reports import iter_reports

NEW = 12
INF, NAN = float("inf"), float("nan")
ENGINES = ["transformers"] + ["dive._C"] * native.available()
needs_engine = pytest.mark.skipif(
    not native.available(), reason="dive._C is not built; pip install -e . builds it"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*logits were not finite")


@pytest.fixture
def backbone(tiny_llava):
    return dive.load_backbone(tiny_llava)


def answers(backbone, studies, **more):
    reports = dive.generate(backbone, studies, max_new_tokens=NEW, **more)
    return [report.token_ids for report in reports]


def lone_token(written):
    """A token that occurs in one answer alone, not first or last: the token, row and index."""
    for row, own in enumerate(written):
        others = {token for at, one in enumerate(written) if at != row for token in one}
        for index in range(1, len(own) - 2):
            if own[index] not in others and own[index] not in own[:index]:
                return own[index], row, index
    raise AssertionError("every token of every answer comes twice")


def spoil(backbone, token, value=NAN):
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[token] = value


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", ["greedy", "sampled", "processed", "beams"])
def test_one_report_ends_and_the_others_are_as_before(backbone, studies, engine, way):
    more = {
        "greedy": {},
        "sampled": {"do_sample": True, "temperature": 1.5, "top_p": 0.95, "seed": 5},
        "processed": {"repetition_penalty": 1.3},
        "beams": {"num_beams": 3},
    }[way]
    if way == "beams":
        if engine == "dive._C":
            pytest.skip("beams are transformers' own")
        # by a word of the prompt: the answer does not show which beam has met a token
        want = answers(backbone, studies, engine=engine, batch_size=3, **more)
        cough = backbone.tokenizer("Cough", add_special_tokens=False)["input_ids"][-1]
        row, index = 0, 0
        spoilt = [0, 2, 4]  # the studies with that indication
        token = cough
    else:
        want = answers(backbone, studies, engine=engine, batch_size=3, **more)
        token, row, index = lone_token(want)
        spoilt, index = [row], index + 1
    spoil(backbone, token)
    with pytest.warns(UserWarning, match="study-0.*logits were not finite") as warned:
        got = dive.generate(
            backbone, studies, max_new_tokens=NEW, engine=engine, batch_size=3, **more
        )
    assert len([one for one in warned if "not finite" in str(one.message)]) == 1
    for at, (report, whole) in enumerate(zip(got, want, strict=True)):
        if at in spoilt:
            assert report.finish_reason == "error"
            assert report.token_ids == whole[:index] and report.num_tokens == index
            assert f"after {index} token" in report.error
            assert "it began in the embeddings or the image features" in report.error
        else:
            assert report.token_ids == whole and report.error is None
            assert report.finish_reason in ("eos", "length")


@pytest.mark.parametrize("engine", ENGINES)
def test_all_of_a_batch_and_rows_taken_over_afterwards(backbone, studies, engine):
    """Every second study is spoilt in its prompt; sound ones take over their slots."""
    cough = backbone.tokenizer("Cough", add_special_tokens=False)["input_ids"][-1]
    want = answers(backbone, studies, engine=engine)
    spoil(backbone, cough, INF)
    for size in (1, 2, 6):
        got = dive.generate(backbone, studies, max_new_tokens=NEW, engine=engine, batch_size=size)
        for at, report in enumerate(got):
            bad = studies[at].indication is not None
            assert (report.finish_reason == "error") is bad
            assert report.token_ids == ([] if bad else want[at])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_adapters_edit_is_named(backbone, studies, engine, monkeypatch):
    monkeypatch.setattr("dive.adapter.adapter.check_numbers", lambda *_: None)
    adapter = randomised(backbone, strength=0.3)
    states = adapter.layers["1"].static
    for positions in ("all", "response"):
        adapter.config.positions = positions
        with torch.no_grad():
            states.fill_(1.0)
        others = [None, adapter, None]
        want = answers(backbone, studies[:3], adapter=others, engine=engine)
        reports = iter_reports(
            backbone, studies[:3], adapter=others, engine=engine, max_new_tokens=NEW
        )
        with torch.no_grad():
            states.fill_(NAN)
        got = list(reports)
        assert [r.finish_reason == "error" for r in got] == [False, True, False]
        assert "the adapter's edit after layer 1" in got[1].error
        assert [got[0].token_ids, got[2].token_ids] == [want[0], want[2]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", [{}, {"do_sample": True, "seed": 2}, {"num_beams": 2}])
def test_logits_that_are_all_the_same(backbone, studies, engine, way):
    """A norm makes zeros of states whose squares are infinite, and a head zeros of zeros."""
    if way.get("num_beams") and engine == "dive._C":
        pytest.skip("beams are transformers' own")
    weight = backbone.model.model.language_model.layers[0].mlp.down_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(1e30)
    report = dive.generate(backbone, studies[:1], max_new_tokens=4, engine=engine, **way)[0]
    assert (report.text, report.token_ids, report.finish_reason) == ("", [], "error")
    assert report.error == (
        "logits were all the same after 0 tokens; it began in layer 0, whose numbers are too large "
        "to be squared"
    )
    with torch.no_grad():
        weight.copy_(kept)
    report = dive.generate(backbone, studies[:1], max_new_tokens=4, engine=engine, **way)[0]
    assert report.error is None and report.num_tokens == 4


def test_processors_may_make_scores_all_the_same(backbone, studies):
    """Sampling draws any token; greedy decoding takes the first of equals."""
    own = LogitsProcessorList([Spoils(0, 0.0)])
    for engine in ENGINES:
        report = dive.generate(
            backbone, studies[:1], max_new_tokens=3, engine=engine, logits_processor=own
        )[0]
        assert report.error is None and report.token_ids == [0, 0, 0]


def test_a_weight_is_named(backbone, studies):
    with torch.no_grad():
        backbone.model.model.language_model.layers[2].mlp.up_proj.weight[3, 1] = NAN
    for engine in ("auto", "transformers"):
        report = dive.generate(backbone, studies[:1], max_new_tokens=3, engine=engine)[0]
        assert (report.text, report.finish_reason) == ("", "error")
        assert "it began in layer 2, whose mlp.up_proj.weight is not finite" in report.error


class Spoils(LogitsProcessor):
    """A processor that makes a row's scores unusable from a length on."""

    def __init__(self, length, value):
        self.length, self.value = length, value

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] < self.length:
            return scores
        return torch.full_like(scores, self.value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_processors_of_the_callers_own(backbone, studies, engine, sampled, value):
    more = {"do_sample": True, "seed": 3, "top_k": 20} if sampled else {}
    more |= {"suppress_tokens": [5, 6]}  # a single -inf is no error
    want = answers(backbone, studies[:1], engine=engine, **more)[0]
    length = prompts(backbone, studies[:1])["input_ids"].shape[1] + 4
    own = LogitsProcessorList([Spoils(length, value)])
    got = dive.generate(
        backbone, studies[:1], max_new_tokens=NEW, engine=engine, logits_processor=own, **more
    )[0]
    assert got.finish_reason == "error" and got.token_ids == want[:4]
    assert got.error == "logits were not finite after 4 tokens; where it began is not known"


def test_values_that_transformers_is_asked_to_remove_are_no_error(backbone, studies):
    token, row, index = lone_token(answers(backbone, studies))
    spoil(backbone, token)
    for engine in ENGINES:
        got = dive.generate(
            backbone, studies, max_new_tokens=NEW, engine=engine, remove_invalid_values=True
        )
        assert got[row].finish_reason != "error" and got[row].num_tokens > index + 1


@needs_engine
@pytest.mark.parametrize("way", [{}, {"do_sample": True, "top_k": 30}, {"num_beams": 2}])
def test_sessions_pad_such_rows_and_name_them(way):
    model = small("llama")
    ids = torch.randint(2, 96, (3, 9), generator=torch.Generator().manual_seed(1))
    ids[1, 4] = 95
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    more = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": 1, **way}
    session = DecodeSession(model)
    torch.manual_seed(4)
    want = session.generate(**batch, **more)
    assert session.failed == []
    assert 95 in ids[1] and 95 not in want[[0, 2]]
    with torch.no_grad():
        model.get_input_embeddings().weight[95] = NAN
    torch.manual_seed(4)
    with pytest.warns(UserWarning, match="not finite, or all the same, in row 1 of"):
        got = session.generate(**batch, **more)
    assert session.failed == [1]
    assert torch.equal(got[[0, 2]], want[[0, 2]])
    assert torch.equal(got[1, :9], ids[1]) and not got[1, 9:].any()
    requests = [Request({"input_ids": one[None]}, more, seed=7) for one in ids]
    written = sorted(session.stream(requests, slots=2))
    assert [one.error for one in written] == [False, True, False]
    assert written[1].token_ids == []


@needs_engine
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("index", [0, 17, 95])
def test_the_engine_chooses_no_token_of_such_logits(value, index):
    model = small("llama")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(96))
    session = DecodeSession(model)
    ids = torch.tensor([[5, 6, 7]])
    want = session.generate(input_ids=ids, max_new_tokens=4)
    assert session.ran.engine == "dive._C"
    cache = session.binding.cache
    cache.vacate()
    cache.reserve(2, 8)
    with torch.no_grad():
        model.lm_head.bias[index] = value  # in place: the engine uses the model's own tensor
    got = cache.step(torch.tensor([0, 1]), torch.tensor([5, 7]))
    if value == -INF:
        assert (got >= 0).all() and index not in got
        model.lm_head.bias.data.fill_(value)
        got = cache.step(torch.tensor([0, 1]), torch.tensor([5, 7]))
    assert got.tolist() == [NO_TOKEN] * 2 and want.shape == (1, 7)


@needs_engine
@pytest.mark.parametrize("other", [None, 0, 1, 40, 95])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_the_engine_chooses_no_token_of_equal_logits(value, other):
    check_equal_logits(small("llama"), value, other)


def test_usable_are_logits_that_differ():
    logits = torch.tensor([[0.0, 0, 0], [0, 0, 1], [-INF, 0, 0], [INF] * 3, [NAN, 0, 1]])
    assert usable(logits).tolist() == [False, True, True, False, False]
    assert most_likely_next(logits).tolist() == [NO_TOKEN, 2, 1, NO_TOKEN, NO_TOKEN]
    assert most_likely_next(torch.zeros(2, 1)).tolist() == [
        0,
        0,
    ]  # with one token there is no other


def test_most_likely_and_draw():
    scores = torch.tensor(
        [[0.0, 2, 2], [0, NAN, 1], [-INF] * 3, [0, INF, 0], [-INF, -INF, 1], [NAN, -INF, INF]]
    )
    assert most_likely(scores).tolist() == [1, -1, -1, -1, 2, -1]
    drawn = draw(scores, generator(1))
    assert (drawn == NO_TOKEN).tolist() == [False, True, True, True, False, True]
    # the numbers drawn for the other rows are those of a sound batch
    sound = torch.tensor([[0.0, 2, 2]] * 5 + [[-INF, -INF, 1]])
    mixed = torch.cat([sound[:2], scores[1:2], sound[3:]])
    a, b = draw(sound, generator(3)), draw(mixed, generator(3))
    keep = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(a[keep], b[keep]) and b[2] == NO_TOKEN


def test_the_command_says_which_and_tries_just_these_again(
    backbone, tiny_llava, studies_folder, tmp_path
):
    studies, out = studies_folder / "studies.jsonl", tmp_path / "reports.jsonl"
    bad = tmp_path / "bad"
    cough = backbone.tokenizer("Cough", add_special_tokens=False)["input_ids"][-1]
    spoil(backbone, cough)
    backbone.model.save_pretrained(bad)
    for file in tiny_llava.iterdir():
        if not (bad / file.name).exists():
            (bad / file.name).write_bytes(file.read_bytes())

    def run(*more):
        given = ["generate", "--backbone", bad, "--studies", studies, "--max-new-tokens", "6"]
        return CliRunner().invoke(app, [str(one) for one in (*given, "--out", out, *more)])

    for _ in range(2):  # the second time only the missing ones
        result = run()
        message = str(result.exception)
        assert result.exit_code == 1
        assert message.startswith("3 studies got no report: study-00, study-02, study-04: logits")
        assert "3 reports kept" in message and "--on-error skip" in message
        assert not out.exists()
        partial = (tmp_path / "reports.jsonl.partial").read_text().splitlines()
        assert [json.loads(line)["id"] for line in partial] == [f"study-0{i}" for i in (1, 3, 5)]
    result = run("--on-error", "skip")
    assert result.exit_code == 0, result.exception
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["id"] for one in kept] == [f"study-0{i}" for i in (1, 3, 5)]
    left = [json.loads(x) for x in (tmp_path / "reports.skipped.jsonl").read_text().splitlines()]
    assert [one["id"] for one in left] == [f"study-0{i}" for i in (0, 2, 4)]
    assert all("logits were not finite after 0 tokens" in one["reason"] for one in left)


def test_on_error_skip_returns_such_reports_all_the_same(backbone, studies):
    cough = backbone.tokenizer("Cough", add_special_tokens=False)["input_ids"][-1]
    spoil(backbone, cough)
    skipped = Skipped()
    got = dive.generate(backbone, studies[:2], max_new_tokens=2, on_error="skip", skipped=skipped)
    assert [one.finish_reason == "error" for one in got] == [True, False]
    assert len(skipped) == 0
