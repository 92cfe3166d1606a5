"""The measures of one adapter: slot decisions and ends by teacher forcing, and written reports.

The reports of all cases run through the steered decoder once, with the prefixes of both slots
appended as trees: a token of a tree sees the report up to its slot and its own ancestors, at the
positions that follow the slot.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import dive
from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import steer
from dive.backbone.load import Backbone
from dive.backbone.structure import output_head
from dive.demo.methods import PROMPT
from dive.demo.reports import concept_findings, micro_f1, style_findings
from dive.demo.world import FINDINGS
from dive.prompting.prompter import Prompter
from experiments.decisive_weights.slots import ABSENT, Tree, trees
from experiments.decisive_weights.world import RARE, RARE_NAMES, Cases, Hospital

if TYPE_CHECKING:
    from dive.generation.generate_reports import Report

BATCH = 40


@dataclass(frozen=True)
class CaseInput:
    """One study as the decoder sees it: its prompt and report, and the trees of its slots.

    embeddings [T, D]: of all tokens, image features included. position_ids [T]. parents [T]: of a
    tree's token the index of what it follows, -1 for the rest. slots: by concept the index whose
    hidden state predicts the slot's first token, and the index of the tree's first node. ends: the
    indices whose hidden states predict whether the report ends, and whether it does.
    """

    embeddings: Tensor
    position_ids: Tensor
    parents: Tensor
    slots: dict[str, tuple[int, int]]
    ends: list[tuple[int, bool]]


def image_tokens(model: Any, pixel_values: Tensor) -> Tensor:
    """Returns the tokens of images as the decoder is shown them, [images, tokens, D]."""
    features = model.get_image_features(pixel_values)
    return torch.stack(list(getattr(features, "pooler_output", features)))


class Scorer:
    """A hospital's test studies, prepared once for all adapters."""

    def __init__(self, backbone: Backbone, hospital: Hospital) -> None:
        self.backbone, self.hospital = backbone, hospital
        self.end_token = Prompter(backbone, prompt=PROMPT).end_token_id
        self.trees = trees(hospital.wording, self._encode)
        self.test = self._sequences(hospital.test, whole=True)
        self.enriched = self._sequences(hospital.enriched, whole=False)

    def _encode(self, text: str) -> list[int]:
        return self.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def _sequences(self, cases: Cases, whole: bool) -> list[CaseInput]:
        """Builds the sequences of studies; not whole: only up to the last slot."""
        prompter = Prompter(self.backbone, prompt=PROMPT)
        model: Any = self.backbone.model
        embed: Any = model.get_input_embeddings()
        made = []
        for study, report in zip(cases.studies, cases.reports, strict=True):
            prompt = prompter.encode(study)
            ids = prompt["input_ids"][0]
            response = prompter.response(study).ids
            before = {name: len(self._encode(text)) for name, text in report.slots.items()}
            if not whole:
                response = response[: max(before.values())]
            shown = embed(ids)
            features = image_tokens(model, prompt["pixel_values"])
            shown[ids == self.backbone.image_token_id] = features.flatten(0, 1)
            made.append(
                self._sequence(shown, response, before, report.ends if whole else (), embed)
            )
        return made

    def _sequence(
        self,
        prompt: Tensor,
        response: Sequence[int],
        before: dict[str, int],
        ends: Sequence[tuple[str, bool]],
        embed: Any,
    ) -> CaseInput:
        length = len(prompt) + len(response)
        tokens: list[int] = []
        parents = [-1] * length
        positions = list(range(length))
        slots = {}
        for tree in self.trees:
            last = len(prompt) + before[tree.concept] - 1
            first = length + len(tokens)
            slots[tree.concept] = (last, first)
            for (parent, token), depth in zip(tree.nodes, tree.depths, strict=True):
                tokens.append(token)
                parents.append(last if parent < 0 else first + parent)
                positions.append(last + depth)
        own = torch.tensor([*response, *tokens])
        return CaseInput(
            torch.cat([prompt, embed(own)]),
            torch.tensor(positions),
            torch.tensor(parents),
            slots,
            [(len(prompt) + len(self._encode(text)) - 1, end) for text, end in ends],
        )

    def score(self, adapter: SteeringAdapter | None) -> dict[str, object]:
        """Returns the measures of an adapter that need no written report; None: the bare model."""
        test, ends = self._decide(adapter, self.test)
        enriched, _ = self._decide(adapter, self.enriched)
        severities = self.hospital.test.severities
        aurocs, nll, stated = {}, [], []
        for tree in self.trees:
            for finding in (i for i in RARE if FINDINGS[i][0] == tree.concept):
                negative = severities[:, finding] == 0
                own = log_odds(test[tree.concept], finding)
                more = log_odds(enriched[tree.concept], finding)
                has = self.hospital.enriched.severities[:, finding] > 0
                positive = np.concatenate([own[~negative], more[has]])
                aurocs[RARE_NAMES[finding]] = auroc(positive, own[negative])
                stated.append((own, ~negative))
            nll += _losses(test[tree.concept], severities)
        scores = np.concatenate([own for own, _ in stated])
        true = np.concatenate([flags for _, flags in stated])
        return {
            "rare_auroc": {name: round(value, 6) for name, value in aurocs.items()},
            "end_auroc": round(
                auroc(
                    np.array([score for score, end in ends if end]),
                    np.array([score for score, end in ends if not end]),
                ),
                6,
            ),
            "slot_nll": round(float(np.mean(nll)), 6),
            "slot_positives": int((scores > 0).sum()),
            "slot_hits": int(((scores > 0) & true).sum()),
            "slot_true": int(true.sum()),
            "slot_scores": scores,
            "slot_labels": true,
        }

    @torch.no_grad()
    def _decide(
        self, adapter: SteeringAdapter | None, sequences: list[CaseInput]
    ) -> tuple[dict[str, list[dict[int, float]]], list[tuple[float, bool]]]:
        """Returns, by concept and study, the log-probability of each group; and scores of ends."""
        found: dict[str, list[dict[int, float]]] = {t.concept: [] for t in self.trees}
        ends: list[tuple[float, bool]] = []
        decoder = self.backbone.model.get_decoder()
        head = output_head(self.backbone.model)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].parents))
        by_study: dict[int, dict[str, dict[int, float]]] = {}
        with _steered(self.backbone, adapter):
            for begin in range(0, len(order), BATCH):
                own = order[begin : begin + BATCH]
                batch = [sequences[i] for i in own]
                hidden = decoder(**_padded(batch), use_cache=False).last_hidden_state
                logits = head(hidden).log_softmax(-1)
                for index, one, scores in zip(own, batch, logits, strict=True):
                    by_study[index] = {
                        tree.concept: _group_scores(tree, one, scores) for tree in self.trees
                    }
                    for at, end in one.ends:
                        log_p = scores[at, self.end_token].double()
                        ends.append((float(log_p - torch.log(-torch.expm1(log_p))), end))
        for index in range(len(sequences)):
            for concept, groups in by_study[index].items():
                found[concept].append(groups)
        return found, ends


def _steered(backbone: Backbone, adapter: SteeringAdapter | None) -> AbstractContextManager[object]:
    return nullcontext() if adapter is None else steer(backbone, adapter)


def _padded(batch: Sequence[CaseInput]) -> dict[str, Tensor]:
    """Returns the decoder's arguments: a token sees what is before it, a tree's its ancestors."""
    longest = max(len(one.parents) for one in batch)
    width = batch[0].embeddings.shape[-1]
    embeddings = torch.zeros(len(batch), longest, width)
    position_ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    seen = torch.eye(longest, dtype=torch.bool).repeat(len(batch), 1, 1)
    for index, one in enumerate(batch):
        length = len(one.parents)
        embeddings[index, :length] = one.embeddings
        position_ids[index, :length] = one.position_ids
        plain = int((one.parents < 0).sum())
        seen[index, :plain, :plain] = torch.ones(plain, plain, dtype=torch.bool).tril()
        for at in range(plain, length):
            seen[index, at] |= seen[index, int(one.parents[at])]
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
    return {"inputs_embeds": embeddings, "position_ids": position_ids, "attention_mask": mask}


def _group_scores(tree: Tree, one: CaseInput, log_p: Tensor) -> dict[int, float]:
    """Returns the log-probability that the slot goes on as each group.

    log_p [T, V]: log-probabilities of the token that follows each token.
    """
    slot, first = one.slots[tree.concept]

    def after(node: int) -> Tensor:
        return log_p[slot if node < 0 else first + node]

    reached: list[Tensor] = []  # of each inner node
    for parent, token in tree.nodes:
        reached.append((reached[parent] if parent >= 0 else 0.0) + after(parent)[token])
    groups: dict[int, list[Tensor]] = {}
    for parent, token, group in tree.leaves:
        score = (reached[parent] if parent >= 0 else 0.0) + after(parent)[token]
        groups.setdefault(group, []).append(score)
    return {
        group: float(torch.stack(scores).double().logsumexp(0)) for group, scores in groups.items()
    }


def log_odds(scores: Sequence[dict[int, float]], finding: int) -> np.ndarray:
    """Returns per study the log odds that its slot states a finding and not one of the others."""
    return np.array(
        [
            groups[finding] - np.logaddexp.reduce([s for g, s in groups.items() if g != finding])
            for groups in scores
        ]
    )


def _losses(scores: Sequence[dict[int, float]], severities: np.ndarray) -> list[float]:
    """Returns per study -log of the probability of what the slot says, among what it may say."""
    losses = []
    for groups, severity in zip(scores, severities, strict=True):
        true = next((g for g in groups if g != ABSENT and severity[g]), ABSENT)
        losses.append(float(np.logaddexp.reduce(list(groups.values())) - groups[true]))
    return losses


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Returns the probability that a positive has the higher score; ties count half."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    up_to = np.searchsorted(ordered, positive, "right")
    return float((below + up_to).mean() / 2 / len(negative))


def written(reports: "Sequence[Report]", hospital: Hospital) -> dict[str, float]:
    """Returns the measures of written reports, of the first `len(reports)` test studies.

    A report stops early where it has fewer of the hospital's closing sentences than the true one,
    late where it has more of them or does not end by itself; all else is content.
    """
    cases, style = hospital.test, hospital.wording.style
    texts = [report.text for report in reports]
    references = [case.text for case in cases.reports[: len(texts)]]
    rare = frozenset(RARE)
    stated = [concept_findings(text) & rare for text in texts]
    true = [
        frozenset(i for i in RARE if severity[i]) for severity in cases.severities[: len(texts)]
    ]
    hits = sum(len(a & b) for a, b in zip(stated, true, strict=True))
    closing = [_closing(hospital, text) for text in texts]
    wanted = [_closing(hospital, text) for text in references]
    ended = [report.finish_reason == "eos" for report in reports]
    early = sum(a < b for a, b in zip(closing, wanted, strict=True))
    late = sum(a > b or not e for a, b, e in zip(closing, wanted, ended, strict=True))
    return {
        "rare_recall": 100 * hits / max(1, sum(map(len, true))),
        "rare_precision": 100 * hits / max(1, sum(map(len, stated))),
        "concept_f1": micro_f1(
            [concept_findings(text) - rare for text in texts],
            [concept_findings(text) - rare for text in references],
        ),
        "style_f1": micro_f1(
            [style_findings(text, style) for text in texts],
            [style_findings(text, style) for text in references],
        ),
        "bleu4": 100 * dive.evaluate(texts, references, metrics=("bleu",))["bleu4"],
        "early_stops": 100 * early / len(texts),
        "late_stops": 100 * late / len(texts),
    }


def _closing(hospital: Hospital, text: str) -> int:
    """Returns how many of the hospital's two closing sentences a report has."""
    return (hospital.wording.advice in text) + (hospital.wording.notice in text)
