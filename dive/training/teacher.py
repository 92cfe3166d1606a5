"""The k-shot teacher: the same frozen backbone, unsteered, shown demonstrations first."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dive.adapter.attach import unsteered
from dive.backbone.structure import last_hidden_state
from dive.data.datasets.json_lines import Skipped
from dive.data.study import Study
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.image_tokens import rendered_length
from dive.prompting.prompter import Prompter
from dive.training.examples import Example, Examples, in_memory
from dive.training.survey import Survey

log = logging.getLogger(__name__)

KEPT_BYTES = 4 << 30  # states that are kept in main memory between epochs
PROBES = 8  # teacher prompts whose text is measured as a whole, to see that turns add up


def fixed_demonstrations(
    pool: Sequence[Study], prompter: Prompter, on_error: str, skipped: Skipped
) -> list[Study]:
    """Studies that are to be shown with every query, with their images in memory. They are few, and
    looked at first.

    Raises:
        DiveError: one has no report, cannot be read, or the processor refuses it; with
            on_error="skip": none is left.
    """
    fixed = []
    for one in pool:
        try:
            one.report(prompter.target)
            study = in_memory(one)
            prompter.encode_any_length(study)
        except DiveError as error:
            if on_error == "fail":
                raise
            skipped.add(one.id, one.source, error)
            continue
        fixed.append(study)
    if not fixed:
        raise DiveError(f"no demonstration is left: {counted(len(pool), 'study')} skipped")
    return fixed


@dataclass
class TeacherPrompt:
    """A k-shot prompt with its report, ready for the model.

    shown: the studies before the query, by their places in the pool. count: the report's tokens.
    alone: own prompts of studies that are shown, from which their image features can be made.
    """

    inputs: dict[str, Tensor]
    shown: list[int]
    count: int
    alone: dict[int, dict[str, Tensor]]


class Teacher:
    """Hidden states of the k-shot prompted backbone at the positions that predict the report.

    Without `redraw` they are kept, in the backbone's dtype and in main memory, and the teacher runs
    once a study, whatever the number of epochs. What does not fit into `KEPT_BYTES` (4 GiB, a
    process: 5,000 reports of 100 tokens at width 4096 in half precision) is computed in every
    epoch. Redrawn demonstrations make other states in every epoch: none is kept. Its logits are
    never stored; teacher and student share one head.
    """

    def __init__(
        self, prompter: Prompter, examples: Examples, demonstrations: Demonstrations
    ) -> None:
        self.prompter = prompter
        self.examples = examples
        self.demonstrations = demonstrations
        self._kept: dict[int, Tensor] = {}
        self._room = 0 if demonstrations.redraw else KEPT_BYTES
        self._full = demonstrations.redraw  # said once, where it is news
        self._indices = {id(one): index for index, one in enumerate(examples.studies)}

    def hidden(
        self,
        indices: Sequence[int],
        epoch: int = 0,
        prompts: Mapping[int, TeacherPrompt] | None = None,
        queries: Mapping[int, Example] | None = None,
    ) -> Tensor:
        """[N, D] on the backbone's device: the rows of these studies, one after the other. What is
        not in `prompts` is encoded here; `queries` are the studies' own examples."""
        prompts, queries = prompts or {}, queries or {}
        each = [self._one(i, epoch, prompts.get(i), queries.get(i)) for i in indices]
        return torch.cat(each)

    def knows(self, index: int) -> bool:
        """Whether the states of a study are kept: then nobody need make its prompt."""
        return index in self._kept

    def index_of(self, place: int) -> int | None:
        """Which training study it is that stands at this place among the demonstrations."""
        return self._indices.get(id(self.demonstrations.pool[place]))

    def prompt(
        self, example: Example, study: Study, epoch: int, bad: dict[int, str]
    ) -> TeacherPrompt:
        """The k-shot prompt of a study with its report.

        A demonstration that cannot be read gives way to the next of the draw, which is then the
        same on every rank and in a resumed training; where there is none, fewer are shown.

        Args:
            study: with its images in memory, so that they are not decoded twice.
            bad: gets the places of demonstrations that cannot be read, and why.

        Raises:
            DiveError: no demonstration is left; prompt and report do not fit the context.
        """
        wanted = self.demonstrations.count
        shown: dict[int, Study] = {}
        lost = 0
        places = self.demonstrations.candidates(study, self._drawn(epoch))
        while True:
            while wanted is None or len(shown) < wanted:
                place = next(places, None)
                if place is None:
                    break
                if self.index_of(place) in self.examples.failed:
                    lost += 1
                    continue
                one = self.demonstrations.pool[place]
                try:
                    shown[place] = in_memory(one)
                except DiveError as error:
                    bad[place] = str(error)
            if not shown and (bad or lost):
                raise DiveError(f"{study.where}: none of its demonstrations can be read")
            try:
                prompt = self.prompter.encode(study, list(shown.values()))
                break
            except DiveError:
                refused = self._refused(shown)
                if not refused:
                    raise
                bad |= refused
                shown = {place: one for place, one in shown.items() if place not in refused}
        try:
            inputs = self.prompter.with_response(prompt, example.response.ids)
        except DiveError as error:
            raise DiveError(f"{study.where}: as the teacher sees it, {error}") from error
        inputs = self.prompter.slim(inputs)
        count = len(example.response.ids)
        own = example.inputs["input_ids"][0, -count:]
        if not torch.equal(inputs["input_ids"][0, -count:], own):
            raise AssertionError("teacher and student must share the report's tokens")
        return TeacherPrompt(inputs, list(shown), count, self._alone(shown))

    def _alone(self, shown: Mapping[int, Study]) -> dict[int, dict[str, Tensor]]:
        """Own prompts of those of these studies whose image features are still to be made."""
        features, pool = self.examples.features, self.demonstrations.pool
        if features is None:
            return {}
        return {
            place: self.prompter.slim(self.prompter.encode_any_length(one))
            for place, one in shown.items()
            if not features.holds(pool[place])
        }

    def _refused(self, shown: Mapping[int, Study]) -> dict[int, str]:
        """Those of these studies that the processor refuses even alone."""
        found = {}
        for place, one in shown.items():
            try:
                self.prompter.encode_any_length(one)
            except DiveError as error:
                found[place] = str(error)
        return found

    def _drawn(self, epoch: int) -> int:
        return epoch if self.demonstrations.redraw else 0

    def _one(
        self, index: int, epoch: int, prompt: TeacherPrompt | None, query: Example | None
    ) -> Tensor:
        device = self.prompter.backbone.device
        if self.knows(index):
            return self._kept[index].to(device)
        if prompt is None:
            bad: dict[int, str] = {}
            prompt = self.prompt(self.examples[index], self.examples.studies[index], epoch, bad)
        own = None if query is None else query.inputs
        states = self._run(self.examples.studies[index], prompt, own)
        self._keep(index, states)
        return states.to(device)  # under a device_map the last layer may be elsewhere

    def _keep(self, index: int, states: Tensor) -> None:
        size = states.numel() * states.element_size()
        if size <= self._room:
            self._room -= size
            # a copy on a CPU, too: a view would keep the states of the whole prompt alive
            self._kept[index] = states.to("cpu", copy=True)
        elif not self._full:
            self._full = True
            log.warning(
                "the teacher's states of %s fill the %.1f GiB there are for them; for the others "
                "it runs in every epoch",
                counted(len(self._kept), "study"),
                KEPT_BYTES / 2**30,
            )

    # One prompt at a time: there is no padding, and what a study gets does not depend on its batch.
    @torch.no_grad()
    def _run(self, study: Study, prompt: TeacherPrompt, query: dict[str, Tensor] | None) -> Tensor:
        shown = [self.demonstrations.pool[place] for place in prompt.shown]
        inputs, count = prompt.inputs, prompt.count
        model = self.prompter.backbone.model
        with unsteered(model):
            own = [*(prompt.alone.get(place) for place in prompt.shown), query]
            filled = self.examples.model_inputs(inputs, [*shown, study], own)
            states = last_hidden_state(model, filled)
        return states[0, -count - 1 : -1]

    def prompt_lengths(self, survey: Survey, epoch: int = 0) -> list[int]:
        """Length of every teacher prompt, found without opening the images of each.

        Raises:
            DiveError: a prompt with its report is longer than the model's context.
        """
        ruler = survey.ruler
        looks = {id(one): look for one, look in zip(survey.studies, survey.looks, strict=True)}
        queries = [(one, self.demonstrations.of(one, epoch)) for one in survey.studies]
        for one in (one for _, shown in queries for one in shown):
            if id(one) not in looks:
                looks[id(one)] = ruler.look(one)

        def text(query: Study, shown: list[Study]) -> int:
            return ruler.text(looks[id(query)], [looks[id(one)] for one in shown])

        probes = queries[:: -(-len(queries) // PROBES)]

        def exact(query: Study, shown: list[Study]) -> int:
            return ruler.images.prompt_overhead + rendered_length(self.prompter, query, shown)

        adds_up = all(text(*one) == exact(*one) for one in probes)
        if not adds_up:
            log.info("turns of a prompt run into each other: every teacher prompt is measured")
        lengths = []
        for place, (study, shown) in enumerate(queries):
            words = text(study, shown) if adds_up else exact(study, shown)
            more = ruler.taken([looks[id(one)] for one in (*shown, study)])
            length, response = words + more, survey.response_lengths[place]
            limit = self.prompter.max_length
            if limit is not None and length + response > limit:
                raise DiveError(
                    f"{study.where}: the teacher's prompt with {len(shown)} demonstrations has "
                    f"{length} tokens ({more} of them for images) and the report {response}; "
                    f"{self.prompter.context}: show fewer demonstrations, or lower "
                    "max_image_tokens"
                )
            lengths.append(length)
        return lengths
