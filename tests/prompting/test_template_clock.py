"""Templates with the date or random choices: one prompt from training to the last report."""

import json
import random
import shutil
import warnings
from datetime import date, datetime

import pytest
import torch
from command_line import call, rows
from tiny_templates import LLAVA
from trainings import Kill, bare, equal, short
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

import dive
from dive.errors import DiveError
from dive.files.json_lines import JsonlWriter
from dive.generation.generate_reports import prompter_for
from dive.prompting.prompter import Prompter
from dive.prompting.template_clock import at, today
from dive.prompting.templates import difference
from dive.training import loop
from dive.training.trainer import DistillTrainer

DATED = "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}" + LLAVA
# as Llama 3 has it
DATE_STRING = (
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    '{{- "Today Date: " + date_string + "\n" }}' + LLAVA
)
DRAWN = "{{ ['one', 'two', 'three', 'four', 'five'] | random }} {{ lipsum(1, false) }}\n" + LLAVA


@pytest.fixture
def clock(monkeypatch):
    """Sets the clock that templates read."""

    def turn(*moment):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime(*moment)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    turn(2024, 7, 26, 23, 59)
    return turn


@pytest.fixture
def dated(tiny_llava, tmp_path_factory):
    """A checkpoint whose own template prints the date."""
    folder = tmp_path_factory.mktemp("dated") / "model"
    shutil.copytree(tiny_llava, folder)
    (folder / "chat_template.jinja").write_text(DATED)
    return folder


@pytest.mark.parametrize(
    "source",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{{ strftime_now(format='%A, %-d. %B %Y, %j %y %m %H:%M:%S.%f %p %c %% %%d') }}",
        "\n   {% if strftime_now is defined %}\n{%- set d = strftime_now(' %Y ') %}{% endif %}"
        "{% macro f() %}{{ strftime_now('%' + 'Y') + d }}{% endmacro %}\n{{ f() }}|{{ f() }}",
        "   {% if true %}\nA {{ strftime_now('%Y-%m-%d') | replace('-', '') }}\n   {% endif %}\n\n",
    ],
)
def test_a_fixed_date_renders_what_the_clock_renders(source, clock):
    clock(2024, 7, 6)
    given = {"conversations": [[{"role": "user", "content": "q"}]]}
    wanted = render_jinja_template(**given, chat_template=source)
    clock(2031, 1, 1)
    assert today() == "2031-01-01"
    assert render_jinja_template(**given, chat_template=at(source, "2024-07-06")) == wanted


@pytest.mark.parametrize("source", [DATED, DATE_STRING])
def test_a_prompter_keeps_its_day(tiny_llava, studies, clock, source):
    backbone = dive.load_backbone(tiny_llava)
    first = Prompter(backbone, template=source)
    text = first.render(studies[0])
    assert "Today Date: 26 Jul 2024\n" in text and first.template_date == "2024-07-26"
    clock(2024, 7, 27, 0, 1)
    second = Prompter(backbone, template=source)
    assert first.render(studies[0]) == text
    assert "Today Date: 27 Jul 2024\n" in second.render(studies[0])
    assert second.template_hash != first.template_hash
    for given in ("2024-07-26", date(2024, 7, 26), datetime(2024, 7, 26, 8)):
        again = Prompter(backbone, template=source, template_date=given)
        assert again.render(studies[0]) == text and again.template_hash == first.template_hash
    said = difference(first.metadata(), second.metadata())
    assert said.startswith("its date, 2024-07-26 (now 2024-07-27); what it renders: ")
    assert "26 Jul 2024" in said and "27 Jul 2024" in said
    with pytest.raises(DiveError, match="template_date is 'today', want a date as 2024-07-26"):
        Prompter(backbone, template=source, template_date="today")
    plain = Prompter(backbone, template_date="2024-07-26")
    assert plain.template_date is None
    assert plain.template_hash == Prompter(backbone).template_hash


def test_a_template_that_draws_lots_draws_the_same(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava)
    random.seed(5)
    state = random.getstate()
    texts = {Prompter(backbone, template=DRAWN).render(studies[0]) for _ in range(4)}
    assert len(texts) == 1 and random.getstate() == state


def test_a_tokenizer_whose_own_code_draws_lots_is_refused(tiny_llama, monkeypatch):
    backbone = dive.load_backbone(tiny_llama)
    own = backbone.tokenizer.apply_chat_template
    numbers = iter(range(1000))
    monkeypatch.setattr(
        backbone.tokenizer, "apply_chat_template",
        lambda *a, **k: f"{next(numbers)} {own(*a, **k)}",
    )  # fmt: skip
    with pytest.raises(DiveError, match="renders the same conversation differently each time"):
        Prompter(backbone)


def test_what_differs_between_templates_is_said(tiny_llava):
    backbone = dive.load_backbone(tiny_llava)
    own, other = Prompter(backbone), Prompter(backbone, template=LLAVA.replace("ASSIST", "HELP"))
    said = difference(own.metadata(), other.metadata())
    assert "its text, hash" in said and "ASSISTANT:" in said and "HELPANT:" in said
    assert difference(own.metadata(), own.metadata()) is None
    commented = Prompter(backbone, template=LLAVA + "{# the same #}")
    said = difference(own.metadata(), commented.metadata())
    assert said.startswith("its text, hash") and "renders" not in said
    # a word of the tokenizer's is part of what is rendered
    backbone.processor.chat_template = LLAVA + "{{ pad_token }}"
    before = Prompter(backbone)
    backbone.tokenizer.pad_token = "</s>"
    after = Prompter(backbone)
    assert before.template.text_hash == after.template.text_hash
    assert before.template_hash != after.template_hash


@pytest.mark.parametrize("preset", ["dive", "dive-ce"])
def test_a_training_over_midnight_is_the_same_bit_for_bit(
    dated, studies, tmp_path, monkeypatch, clock, preset
):
    config = short(preset=preset, steps=5, batch_size=2, save_steps=2)
    backbone = dive.load_backbone(dated)
    whole = dive.distill(backbone, studies, config=config)
    prompt = Prompter(backbone).encode(studies[0])["input_ids"]

    class Killed(DistillTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.add_callback(Kill(3))

    folder = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "DistillTrainer", Killed)
        dive.distill(backbone, studies, config=config, output_dir=folder)
    assert json.loads((folder / "run.json").read_text())["template_date"] == "2024-07-26"
    half = dive.SteeringAdapter.from_pretrained(folder / "checkpoint-2")
    assert half.metadata["template_date"] == "2024-07-26"

    clock(2024, 7, 27)
    again = {"config": config, "output_dir": folder, "resume": True}
    with pytest.raises(DiveError, match=r"its date, 2024-07-26 \(now 2024-07-27\)"):
        dive.distill(backbone, studies, **again, template_date="2024-07-27")
    resumed = dive.distill(backbone, studies, **again)
    assert equal(whole, resumed)
    assert not equal(whole, dive.distill(backbone, studies, config=config))  # the date does matter
    assert equal(whole, dive.distill(backbone, studies, config=config, template_date="2024-07-26"))

    # and every later report has the prompt of the training
    resumed.save_pretrained(tmp_path / "adapter")
    loaded = dive.SteeringAdapter.from_pretrained(tmp_path / "adapter")
    clock(2025, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompter = prompter_for(backbone, loaded)
    assert torch.equal(prompter.encode(studies[0])["input_ids"], prompt)
    assert prompter.template_hash == whole.metadata["template_hash"]
    with pytest.warns(UserWarning, match=r"template_hash .*its date, 2024-07-26 \(now 2025-01-01"):
        dive.generate(backbone, studies[0], adapter=loaded, max_new_tokens=1,
                      template_date=today())  # fmt: skip


@pytest.mark.parametrize("positions", ["all", "response"])
def test_adapters_of_two_days_are_each_asked_on_their_own(dated, studies, clock, positions):
    backbone = dive.load_backbone(dated)
    config = bare(steps=1, positions=positions)
    adapters = [dive.distill(backbone, studies, config=config)]
    clock(2024, 12, 27)
    adapters.append(dive.distill(backbone, studies, config=config))
    clock(2025, 1, 1)
    options = {"max_new_tokens": 4}
    alone = [dive.generate(backbone, studies[0], adapter=a, **options)[0] for a in adapters]
    shown = [studies[0]] * 2
    together = dive.generate(backbone, shown, adapter=adapters, **options)
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert [r.prompt_tokens for r in together] == [r.prompt_tokens for r in alone]


def as_made_before(metadata, text_hash):
    kept = {name: value for name, value in metadata.items() if not name.startswith("template_")}
    return kept | {"template_hash": text_hash}


def test_adapters_made_before_dates_were_stored_load(tiny_llava, dated, studies, clock, tmp_path):
    for folder, said in ((tiny_llava, None), (dated, "does not say which one it was trained with")):
        backbone = dive.load_backbone(folder)
        adapter = dive.distill(backbone, studies, config=bare(steps=1))
        text_hash = adapter.metadata["template_text_hash"]
        adapter.metadata = as_made_before(adapter.metadata, text_hash)
        adapter.save_pretrained(tmp_path / "adapter")
        loaded = dive.SteeringAdapter.from_pretrained(tmp_path / "adapter")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            dive.generate(backbone, studies[0], adapter=loaded, max_new_tokens=1)
        told = [str(one.message) for one in caught if "template" in str(one.message)]
        assert bool(told) == bool(said) and (said is None or said in told[0])
        loaded.metadata["template_hash"] = "0" * 16
        with pytest.warns(UserWarning, match="template_hash '0{16}'.*its text .hash 0{16}, now"):
            dive.generate(backbone, studies[0], adapter=loaded, max_new_tokens=1)


def test_trainings_begun_before_dates_were_stored(
    tiny_llava, dated, studies, clock, tmp_path, monkeypatch
):
    class Killed(DistillTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.add_callback(Kill(3))

    config = bare(steps=5, batch_size=2, save_steps=2)
    for name, model in (("plain", tiny_llava), ("dated", dated)):
        backbone, folder = dive.load_backbone(model), tmp_path / name
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(loop, "DistillTrainer", Killed)
            dive.distill(backbone, studies, config=config, output_dir=folder)
        run = json.loads((folder / "run.json").read_text())
        run = as_made_before(run, run["template_text_hash"])
        (folder / "run.json").write_text(json.dumps(run))
        again = {"config": config, "output_dir": folder, "resume": True}
        if name == "plain":
            resumed = dive.distill(backbone, studies, **again)
            assert equal(resumed, dive.distill(backbone, studies, config=config))
        else:
            with pytest.raises(DiveError, match="does not say which one its prompts had"):
                dive.distill(backbone, studies, **again)


def stopped_at(monkeypatch, count, *command):
    own = JsonlWriter.append

    def stops(self, row):
        if len(self.done) == count:
            raise KeyboardInterrupt
        own(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(JsonlWriter, "append", stops)
        call(*command)


def resumed(out, clock, monkeypatch, command):
    """The reports of a run that was stopped after two and continues on another day."""
    out.unlink()
    clock(2024, 7, 26)
    stopped_at(monkeypatch, 2, *command)
    assert len(out.with_name("reports.jsonl.partial").read_text().splitlines()) == 2
    clock(2024, 12, 27)
    call(*command)
    return [row["report"] for row in rows(out)]


def test_an_interrupted_run_of_reports_keeps_its_day(
    dated, studies_folder, tmp_path, clock, monkeypatch
):
    out = tmp_path / "reports.jsonl"
    command = ["generate", "--backbone", dated, "--studies", studies_folder / "studies.jsonl",
               "--out", out, "--max-new-tokens", 4, "--batch-size", 1]  # fmt: skip
    call(*command)
    wanted = [row["report"] for row in rows(out)]
    clock(2024, 12, 27)
    call(*command, "--overwrite")
    assert [row["report"] for row in rows(out)] != wanted  # the date does matter
    call(*command, "--overwrite", "--template-date", "2024-07-26")
    assert [row["report"] for row in rows(out)] == wanted
    assert resumed(out, clock, monkeypatch, command) == wanted


@pytest.mark.parametrize("of", ["an old adapter", "an adapter without a date", "one with its own"])
def test_the_day_is_kept_beside_an_adapter_too(
    of, tiny_llava, dated, studies, studies_folder, tmp_path, clock, monkeypatch
):
    """The day of the first half is that of the whole run where no date is passed."""
    trained = tiny_llava if of == "an adapter without a date" else dated
    adapter = dive.distill(dive.load_backbone(trained), studies, config=bare(steps=1))
    if of == "an old adapter":
        text_hash = adapter.metadata["template_text_hash"]
        adapter.metadata = as_made_before(adapter.metadata, text_hash)
    adapter.save_pretrained(tmp_path / "adapter")
    (tmp_path / "clock.jinja").write_text(DATED)
    out = tmp_path / "reports.jsonl"
    command = ["generate", "--backbone", trained, "--studies", studies_folder / "studies.jsonl",
               "--out", out, "--max-new-tokens", 4, "--batch-size", 1,
               "--adapter", tmp_path / "adapter"]  # fmt: skip
    if trained == tiny_llava:
        command += ["--template", tmp_path / "clock.jinja"]
    warned = "does not say which one" if of == "an old adapter" else None
    days = {}
    for name, day in (("first", (2024, 7, 26)), ("later", (2024, 12, 27))):
        clock(*day)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(*command, "--overwrite")
        told = [str(one.message) for one in caught if "which one it was" in str(one.message)]
        assert bool(told) == bool(warned)
        days[name] = [row["report"] for row in rows(out)]
    assert (days["first"] == days["later"]) == (of == "one with its own")
    assert resumed(out, clock, monkeypatch, command) == days["first"]
