"""The slot of a rare finding: where a report states it or denies it, and every way to do either.

A slot begins where the section of a concept begins in the reference (behind its label, if the
hospital has labels). What may follow is known: two forms of "present" with three severities on
either side, and two forms of "absent". Each is followed up to the first token that no sentence of
another group shares; the probabilities of these prefixes are summed within a group, so it does not
matter which form was drawn. The prefixes share tokens, and are computed as one tree.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dive.demo.world import FINDINGS
from experiments.decisive_weights.world import RARE, RARE_CONCEPTS, Wording

ABSENT = -1  # the group of the absent forms; the others are indices into FINDINGS

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Tree:
    """The unambiguous prefixes of one concept's sentences.

    nodes: (parent, token) of every inner node in order; a parent of -1 is the slot itself.
    leaves: (parent, token, group) of the last token of each prefix.
    """

    concept: str
    nodes: tuple[tuple[int, int], ...]
    leaves: tuple[tuple[int, int, int], ...]

    @property
    def depths(self) -> list[int]:
        """Tokens from the slot to each inner node, itself included."""
        depths: list[int] = []
        for parent, _ in self.nodes:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths


def sentences(wording: Wording, concept: str) -> dict[int, list[str]]:
    """Returns every sentence that may open the section of a rare concept, by group."""
    style = wording.style
    own = [i for i in RARE if FINDINGS[i][0] == concept]
    found = {
        index: [
            form.format(phrase=style.phrase_for(index, severity))
            for form in wording.present[concept]
            for severity in (1, 2, 3)
        ]
        for index in own
    }
    term = style.terms[concept]
    return found | {ABSENT: [form.format(term=term) for form in wording.absent[concept]]}


def unambiguous(groups: dict[int, list[tuple[int, ...]]]) -> dict[int, set[tuple[int, ...]]]:
    """Returns the shortest prefix of each sequence that begins no sequence of another group."""
    begins: dict[tuple[int, ...], set[int]] = {}
    for group, sequences in groups.items():
        for sequence in sequences:
            for length in range(1, len(sequence) + 1):
                begins.setdefault(sequence[:length], set()).add(group)
    found: dict[int, set[tuple[int, ...]]] = {}
    for group, sequences in groups.items():
        for sequence in sequences:
            prefixes = (sequence[:length] for length in range(1, len(sequence) + 1))
            prefix = next((one for one in prefixes if begins[one] == {group}), None)
            if prefix is None:
                raise ValueError(f"a sentence of group {group} begins one of another group")
            found.setdefault(group, set()).add(prefix)
    return found


def decision_tree(wording: Wording, concept: str, encode: Encode) -> Tree:
    """Builds the tree of a rare concept's prefixes."""
    groups = {
        group: [tuple(encode(text)) for text in texts]
        for group, texts in sentences(wording, concept).items()
    }
    nodes: list[tuple[int, int]] = []
    leaves: list[tuple[int, int, int]] = []
    known: dict[tuple[int, ...], int] = {(): -1}
    for group, prefixes in unambiguous(groups).items():
        for prefix in sorted(prefixes):
            for length in range(1, len(prefix)):
                if prefix[:length] not in known:
                    nodes.append((known[prefix[: length - 1]], prefix[length - 1]))
                    known[prefix[:length]] = len(nodes) - 1
            leaves.append((known[prefix[:-1]], prefix[-1], group))
    return Tree(concept, tuple(nodes), tuple(leaves))


def trees(wording: Wording, encode: Encode) -> tuple[Tree, ...]:
    return tuple(decision_tree(wording, concept, encode) for concept in RARE_CONCEPTS)
