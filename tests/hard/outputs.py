"""What `dive generate` and `dive distill` write on a tiny backbone, undisturbed."""

import json
from pathlib import Path

from tests.hard import processes

REFUSED = ("is being written by", "is there already", "holds an adapter already")


class Outputs:
    """Commands on a tiny backbone and six studies, and what each writes where nothing disturbs it.

    `wrong` compares: of reports the ids in their order, the texts and their lengths (how long they
    took differs), of an adapter every byte of its parameters.
    """

    def __init__(self, folder: Path) -> None:
        from tiny import save_studies, save_tiny_llava

        self.log = folder / "undisturbed.log"
        shared = ["--backbone", str(save_tiny_llava(folder / "backbone"))]
        shared += ["--studies", str(save_studies(folder / "studies") / "studies.jsonl")]
        self._arguments = {
            "generate": ["generate", *shared, "--max-new-tokens", "12", "--batch-size", "2"],
            "distill": [
                "distill", *shared, "--preset", "dive-ce", "--rank", "2", "--steps", "4",
                "--batch-size", "2", "--set", "save_steps=1",
            ],
        }  # fmt: skip
        self._right: dict[str, object] = {}
        self._folder = folder

    def command(self, kind: str, out: Path, resume: bool = False) -> list[str]:
        """The words behind `dive`; generate goes on without being told."""
        more = ["--resume"] if resume and kind == "distill" else []
        return [*self._arguments[kind], "--out", str(out), *more]

    def wrong(self, kind: str, out: Path, alone: bool = True) -> str | None:
        """What is other than undisturbed, or None. alone: nor may any other file be left."""
        if kind not in self._right:
            there = self._folder / f"undisturbed-{kind}" / "out"
            if processes.run(self.command(kind, there), self.log):
                raise RuntimeError(self.log.read_text(encoding="utf-8"))
            self._right[kind] = _content(kind, there), _names(there)
        try:
            found = _content(kind, out)
        except (OSError, ValueError, KeyError) as error:
            return f"no result: {error}"
        content, names = self._right[kind]  # type: ignore[misc]
        if found != content:
            return "another result than undisturbed"
        if alone and _names(out) != names:
            return f"{_names(out)} is there, undisturbed it is {names}"
        return None


def said(log: Path) -> str:
    """What is wrong with what a command said that ended with 1; "" where it is one error."""
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    if "Traceback" in text:
        return "a traceback: " + text.splitlines()[-1]
    return "" if text.count("error: ") == 1 else f"{text.count('error: ')} errors: {text[-300:]!r}"


def _content(kind: str, out: Path) -> object:
    if kind == "distill":
        return (out / "adapter.safetensors").read_bytes()
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return [(row["id"], row["report"], row["num_tokens"], row["finish_reason"]) for row in rows]


def _names(out: Path) -> list[str]:
    """Every file of the folder in which the output is."""
    found = out.parent.rglob("*")
    return sorted(str(one.relative_to(out.parent)) for one in found if one.is_file())
