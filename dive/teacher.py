"""The k-shot teacher: the same frozen backbone, unsteered, shown demonstrations first."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dive.attach import attachment_of
from dive.data.study import Study
from dive.errors import DiveError
from dive.examples import Example, Examples
from dive.image_tokens import rendered_length
from dive.prompting import Prompter
from dive.structure import last_hidden_state
from dive.survey import Survey

PROBES = 8  # teacher prompts whose text is measured as a whole, to see that turns add up


class Demonstrations:
    """Which studies are shown before a query: fixed ones, or `count` drawn from a pool.

    A draw is a function of (seed, epoch, id of the query), so that a resumed training repeats it.
    A study is never its own demonstration, nor one of the same patient's.
    """

    def __init__(
        self,
        pool: Sequence[Study],
        count: int | None = None,
        *,
        seed: int = 0,
        redraw: bool = False,
    ) -> None:
        """`count` None: the whole pool, in its order, is shown. redraw: anew in every epoch."""
        if count is not None and count < 1:
            raise DiveError(f"demonstrations is {count}, want 1 or more")
        if not pool:
            raise DiveError("demonstrations: the list is empty, want one study or more")
        self.pool = list(pool)
        self.count = count
        self.seed = seed
        self.redraw = redraw and count is not None
        # places in the pool by id and by patient, so that a draw does not go through the pool
        self._places: dict[tuple[str, str], list[int]] = {}
        for place, one in enumerate(self.pool):
            for name in case_names(one):
                self._places.setdefault(name, []).append(place)

    def of(self, study: Study, epoch: int = 0) -> list[Study]:
        """The demonstrations for this query, in the order in which they are shown."""
        own = {place for name in case_names(study) for place in self._places.get(name, ())}
        if self.count is None:
            return [one for place, one in enumerate(self.pool) if place not in own]
        if len(self.pool) - len(own) < self.count:
            raise DiveError(
                f"{study.where}: {self.count} demonstrations are wanted, and there are "
                f"{len(self.pool) - len(own)} studies of other patients to draw from"
            )
        key = f"{self.seed}/{epoch if self.redraw else 0}/{study.id}"
        digest = hashlib.sha256(key.encode("utf-8")).digest()
        drawn = random.Random(digest).sample(range(len(self.pool)), self.count + len(own))
        return [self.pool[place] for place in drawn if place not in own][: self.count]


def case_names(study: Study) -> list[tuple[str, str]]:
    """Of two studies that share one of these, one is the other, or of the same patient."""
    names = [("id", study.id)]
    return names if study.patient is None else [*names, ("patient", study.patient)]


def as_demonstrations(given: Any, wanted: str = "a list of studies") -> list[Study]:
    """Studies that a caller gave to be shown; DiveError, saying what is wanted, if it is not so."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise DiveError(f"demonstrations is {given!r}; wants {wanted}")
    shown = list(given)
    for one in shown:
        if not isinstance(one, Study):
            raise DiveError(f"demonstrations holds a {type(one).__name__}; wants studies")
    return shown


class Teacher:
    """Hidden states of the k-shot prompted backbone at the positions that predict the report.

    They are kept, in the backbone's dtype and in main memory: without `redraw` the teacher runs
    once a study, whatever the number of epochs. Its logits are never stored; teacher and student
    share one head.
    """

    def __init__(
        self, prompter: Prompter, examples: Examples, demonstrations: Demonstrations
    ) -> None:
        self.prompter = prompter
        self.examples = examples
        self.demonstrations = demonstrations
        self._kept: dict[int, tuple[int, Tensor]] = {}

    def hidden(self, indices: Sequence[int], epoch: int = 0) -> Tensor:
        """[N, D] on the backbone's device: the rows of these studies, one after the other."""
        epoch = epoch if self.demonstrations.redraw else 0
        return torch.cat([self._one(index, epoch) for index in indices])

    def _one(self, index: int, epoch: int) -> Tensor:
        device = self.prompter.backbone.device
        kept = self._kept.get(index)
        if kept is not None and kept[0] == epoch:
            return kept[1].to(device)
        states = self._run(self.examples[index], self.examples.studies[index], epoch)
        self._kept[index] = (epoch, states.cpu())
        return states.to(device)  # under a device_map the last layer may be elsewhere

    # One prompt at a time: there is no padding, and what a study gets does not depend on its batch.
    @torch.no_grad()
    def _run(self, example: Example, study: Study, epoch: int) -> Tensor:
        shown = self.demonstrations.of(study, epoch)
        prompt = self.prompter.encode(study, shown)
        try:
            inputs = self.prompter.with_response(prompt, example.response.ids)
        except DiveError as error:
            raise DiveError(f"{study.where}: as the teacher sees it, {error}") from error
        count = len(example.response.ids)
        own = example.inputs["input_ids"][0, -count:]
        if not torch.equal(inputs["input_ids"][0, -count:], own):
            raise AssertionError("teacher and student must share the report's tokens")
        model = self.prompter.backbone.model
        attachment = attachment_of(model)
        enabled = attachment.enabled if attachment is not None else False
        if attachment is not None:
            attachment.enabled = False
        try:
            states = last_hidden_state(model, self.examples.model_inputs(inputs, [*shown, study]))
        finally:
            if attachment is not None:
                attachment.enabled = enabled
        return states[0, -count - 1 : -1]

    def prompt_lengths(self, survey: Survey, epoch: int = 0) -> list[int]:
        """Length of every teacher prompt, found without opening the images of each.

        Raises:
            DiveError: a prompt with its report is longer than the model's context.
        """
        ruler = survey.ruler
        looks = {id(one): look for one, look in zip(survey.studies, survey.looks, strict=True)}
        turns: dict[int, int] = {}
        queries = [(one, self.demonstrations.of(one, epoch)) for one in survey.studies]
        for one in (one for _, shown in queries for one in shown):
            if id(one) in turns:
                continue
            if id(one) not in looks:
                looks[id(one)] = ruler.look(one)
            known = looks[id(one)].turn
            turns[id(one)] = ruler.turn(one) if known is None else known

        def text(query: Study, shown: list[Study]) -> int:
            return ruler.text(looks[id(query)], [turns[id(one)] for one in shown])

        # turns add up wherever a template sets them apart by tokens of its own
        probes = queries[:: -(-len(queries) // PROBES)]
        exact = self.prompter
        adds_up = all(text(*one) == rendered_length(exact, *one) for one in probes)
        lengths = []
        for place, (study, shown) in enumerate(queries):
            words = text(study, shown) if adds_up else rendered_length(exact, study, shown)
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
