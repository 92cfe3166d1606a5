"""The k-shot teacher: the same frozen backbone, unsteered, with demonstrations in its prompt."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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

KEPT_BYTES = 4 << 30  # of hidden states that are kept in main memory between epochs
PROBES = 8  # teacher prompts whose text is measured as a whole, to check that turns add up


def fixed_demonstrations(
    pool: Sequence[Study], prompter: Prompter, on_error: str, skipped: Skipped
) -> list[Study]:
    """The studies that are shown with every query, with their images in memory.

    Raises:
        DiveError: a study has no report, cannot be read, or is refused by the processor; with
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

    shown: the indices in the pool of the studies before the query. count: the report's tokens.
    alone: the own prompts of shown studies whose image features are still to be computed.
    """

    inputs: dict[str, Tensor]
    shown: list[int]
    count: int
    alone: dict[int, dict[str, Tensor]]


class Teacher:
    """Hidden states of the k-shot prompted backbone at the positions that predict the report.

    Without `redraw` they are kept, in the backbone's dtype and in main memory, and the teacher runs
    once per study, whatever the number of epochs. What does not fit into `KEPT_BYTES` (4 GiB per
    process: 5,000 reports of 100 tokens at width 4096 in half precision) is computed in every
    epoch. With redrawn demonstrations, whose states differ in every epoch, none is kept. Logits are
    never stored; teacher and student share one head.
    """

    def __init__(
        self, prompter: Prompter, examples: Examples, demonstrations: Demonstrations
    ) -> None:
        self.prompter = prompter
        self.examples = examples
        self.demonstrations = demonstrations
        self._kept: dict[int, Tensor] = {}
        self._bytes_left = 0 if demonstrations.redraw else KEPT_BYTES
        self._full = demonstrations.redraw  # whether the warning is given, or not needed
        self._indices = {id(one): index for index, one in enumerate(examples.studies)}

    def hidden(
        self,
        indices: Sequence[int],
        epoch: int = 0,
        prompts: Mapping[int, TeacherPrompt] | None = None,
        queries: Mapping[int, Example] | None = None,
        computed: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [N, D] on the backbone's device: the rows of these studies, one after the
        other. Prompts that are not in `prompts` are encoded; `queries`: the studies' examples;
        `computed`: hidden states that are known already."""
        prompts, queries, computed = prompts or {}, queries or {}, computed or {}
        each = []
        for i in indices:
            if i in computed and not self.knows(i):
                self._keep(i, computed[i])
                each.append(computed[i].to(self.prompter.backbone.device))
            else:
                each.append(self._one(i, epoch, prompts.get(i), queries.get(i)))
        return torch.cat(each)

    def knows(self, index: int) -> bool:
        """Whether the hidden states of a study are kept, so that its prompt is not needed."""
        return index in self._kept

    def index_of(self, shown: int) -> int | None:
        """The index among the training studies of a demonstration, by its index in the pool."""
        return self._indices.get(id(self.demonstrations.pool[shown]))

    def prompt(
        self, example: Example, study: Study, epoch: int, bad: dict[int, str]
    ) -> TeacherPrompt:
        """The k-shot prompt of a study with its report.

        A demonstration that cannot be read is replaced by the next of the draw, which is the same
        on every rank and in a resumed training; where there is none, fewer are shown.

        Args:
            study: with its images in memory, so that they are not decoded twice.
            bad: filled with the reasons why demonstrations cannot be read, by pool index.

        Raises:
            DiveError: no demonstration is left; prompt and report do not fit the context.
        """
        return self.prompt_and_shown(example, study, epoch, bad)[0]

    def prompt_and_shown(
        self, example: Example, study: Study, epoch: int, bad: dict[int, str]
    ) -> tuple[TeacherPrompt, list[Study]]:
        """`prompt`, and the demonstrations that it shows, with their images in memory."""
        wanted = self.demonstrations.count
        shown: dict[int, Study] = {}
        lost = 0
        draw = self.demonstrations.candidates(study, self.drawn(epoch))
        while True:
            while wanted is None or len(shown) < wanted:
                at = next(draw, None)
                if at is None:
                    break
                if self.index_of(at) in self.examples.failed:
                    lost += 1
                    continue
                one = self.demonstrations.pool[at]
                try:
                    shown[at] = in_memory(one)
                except DiveError as error:
                    bad[at] = str(error)
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
                shown = {at: one for at, one in shown.items() if at not in refused}
        inputs = self.with_report(prompt, example, study)
        made = TeacherPrompt(inputs, list(shown), len(example.response.ids), self._alone(shown))
        return made, list(shown.values())

    def with_report(
        self, prompt: dict[str, Tensor], example: Example, study: Study
    ) -> dict[str, Tensor]:
        """The teacher's prompt of a study, followed by its report.

        Raises:
            DiveError: both together do not fit the context.
        """
        ids = example.response.ids
        try:
            inputs = self.prompter.with_response(prompt, ids)
        except DiveError as error:
            raise DiveError(f"{study.where}: as the teacher sees it, {error}") from error
        inputs = self.prompter.slim(inputs)
        own = example.inputs["input_ids"][0, -len(ids) :]
        if not torch.equal(inputs["input_ids"][0, -len(ids) :], own):
            raise AssertionError("teacher and student must share the report's tokens")
        return inputs

    def _alone(self, shown: Mapping[int, Study]) -> dict[int, dict[str, Tensor]]:
        """The own prompts of those studies whose image features are still to be computed."""
        features, pool = self.examples.features, self.demonstrations.pool
        if features is None:
            return {}
        return {
            at: self.prompter.slim(self.prompter.encode_any_length(one))
            for at, one in shown.items()
            if not features.holds(pool[at])
        }

    def _refused(self, shown: Mapping[int, Study]) -> dict[int, str]:
        """The reasons for the studies that the processor refuses even by themselves."""
        found = {}
        for at, one in shown.items():
            try:
                self.prompter.encode_any_length(one)
            except DiveError as error:
                found[at] = str(error)
        return found

    def drawn(self, epoch: int) -> int:
        """The epoch whose demonstrations are shown in this one: without `redraw` the first."""
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
        states = self.states(self.examples.studies[index], prompt, own)
        self._keep(index, states)
        return states.to(device)  # under a device_map the last layer may be elsewhere

    def _keep(self, index: int, states: Tensor) -> None:
        size = states.numel() * states.element_size()
        if size <= self._bytes_left:
            self._bytes_left -= size
            # a copy on a CPU, too: a view would keep the states of the whole prompt in memory
            self._kept[index] = states.to("cpu", copy=True)
        elif not self._full:
            self._full = True
            log.warning(
                "the teacher's hidden states of %s fill the %.1f GiB that are reserved for them; "
                "for the others it runs in every epoch",
                counted(len(self._kept), "study"),
                KEPT_BYTES / 2**30,
            )

    # One prompt per forward: without padding a study's states do not depend on its batch.
    @torch.no_grad()
    def states(
        self, study: Study, prompt: TeacherPrompt, query: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Hidden states [T, D] that predict the tokens of the report of one prompt.

        Args:
            study: whose images the query shows. query: its own prompt, for its image features.
        """
        shown = [self.demonstrations.pool[at] for at in prompt.shown]
        inputs, count = prompt.inputs, prompt.count
        model = self.prompter.backbone.model
        with unsteered(model):
            own = [*(prompt.alone.get(at) for at in prompt.shown), query]
            filled = self.examples.model_inputs(inputs, [*shown, study], own)
            states = last_hidden_state(model, filled)
        return states[0, -count - 1 : -1]

    def prompt_lengths(
        self, survey: Survey, epoch: int = 0, others: Sequence[Sequence[int]] | None = None
    ) -> list[int]:
        """The length of every teacher prompt in tokens, found without encoding it.

        others: for each study, those whose images are shown in place of its own, too; then the
            length of its longest prompt.

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
        for index, (study, shown) in enumerate(queries):
            own = text(study, shown) if adds_up else exact(study, shown)
            shown_looks = [looks[id(one)] for one in shown]
            longest = 0
            for at in (index, *(others[index] if others else ())):
                query = survey.studies[at]
                same = len(query.images) == len(study.images)
                words = own if same else exact(replace(study, images=query.images), shown)
                more = ruler.taken([*shown_looks, looks[id(query)]])
                what = f"the teacher's prompt with {len(shown)} demonstrations"
                what += "" if at == index else f" and the images of {query.where}"
                response = survey.response_lengths[index]
                self._check_length(f"{study.where}: {what}", words + more, more, response)
                longest = max(longest, words + more)
            lengths.append(longest)
        return lengths

    def _check_length(self, what: str, length: int, images: int, response: int) -> None:
        limit = self.prompter.max_length
        if limit is not None and length + response > limit:
            raise DiveError(
                f"{what} has {length} tokens ({images} of them for images) and the report "
                f"{response}; "
                f"{self.prompter.context}: show fewer demonstrations, or lower max_image_tokens"
            )
