"""The table of results/*-llama-cpp*.json, and the sentence in the project's README.md."""

import re
from typing import Any

from benchmarks.page_table import number, table

Result = dict[str, Any]
PEER = "llama.cpp"
_MARKED = re.compile(r"(<!-- benchmarks: llama.cpp -->\n).*?(<!-- end -->)", re.DOTALL)


def case_table(result: Result) -> list[str]:
    """Returns one line per case: times, shares of the floor, session time over llama.cpp's."""
    lines = []
    for case in result["cases"]:
        if "not_run" in case:
            lines.append([case["case"], "not run", "", "", "", "", "", case["not_run"]])
            continue
        ms, shares = case["ms_a_token"], case["share_of_floor"]
        lines.append(
            [
                case["case"],
                number(ms["floor"]["cpu"]),
                *(f"{number(ms[way]['cpu'])} ({100 * shares[way]:.0f} %)"
                  for way in ("session", PEER)),
                *(interval(case["times_llama_cpp"][clock]) for clock in ("cpu", "wall")),
                f"{100 * case['same_tokens']:.0f} %",
                case["floor_by"],
            ]
        )  # fmt: skip
    head = ["ms per token", "floor", "session (of the floor)", "llama.cpp (of the floor)",
            "session over llama.cpp (95%)", "by the wall (95%)", "same tokens",
            "floor by"]  # fmt: skip
    built = result.get("llama_cpp")
    by = f"llama-cpp-python {built['llama-cpp-python']}, {built['compiled_for']}" if built else ""
    return [*table(head, lines), *([by, ""] if by else [])]


def interval(values: list[float]) -> str:
    median, low, high = values
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def sentence(result: Result) -> str:
    """Returns a paragraph: the time per token over llama.cpp's, and where the session is slower."""
    cases = [case for case in result["cases"] if "not_run" not in case]
    if not cases:
        why = next((case["not_run"] for case in result["cases"]), "there is no case")
        return f"Decoding on a CPU was not measured against llama.cpp: {why}."
    parts = []
    for batch in sorted({case["batch"] for case in cases}):
        times = []
        for dtype in dict.fromkeys(case["dtype"] for case in cases):
            medians = [
                case["times_llama_cpp"]["cpu"][0]
                for case in cases
                if (case["batch"], case["dtype"]) == (batch, dtype)
            ]
            if medians:
                low, high = f"{min(medians):.2f}", f"{max(medians):.2f}"
                times.append(f"{low if low == high else f'{low} to {high}'} in {dtype}")
        parts.append(f"{' and '.join(times)} at batch {batch}")
    slower = [case["case"] for case in cases if case["times_llama_cpp"]["cpu"][1] > 1]
    faster = [case for case in cases if case["times_llama_cpp"]["cpu"][2] < 1]
    if len(faster) == len(cases):
        verdict = "less in every case"
    else:
        verdict = f"less in {len(faster)} of {len(cases)} cases"
        verdict += f", more in {len(slower)}" + (f" ({'; '.join(slower)})" if slower else "")
    threads = {case["threads"] for case in cases}
    many = "1 thread" if threads == {1} else f"{max(threads)} threads"
    return (
        f"Against llama.cpp on a CPU ({result['device']}, {many}, the same random weights), the "
        f"session takes {'; '.join(parts)}, times llama.cpp's CPU time per token: {verdict}, by a "
        "95% interval of the ratio."
    )


def fill(page: str, results: dict[str, Result]) -> str:
    """Returns the page with the sentence on the results of one thread between its markers.

    ValueError: it has no markers.
    """
    if not _MARKED.search(page):
        raise ValueError("the page has no <!-- benchmarks: llama.cpp --> ... <!-- end -->")
    plain = next((result for name, result in results.items() if name.endswith("llama-cpp")), None)
    words = sentence(plain or {"cases": []})
    return _MARKED.sub(lambda found: f"{found[1]}{_wrapped(words)}\n{found[2]}", page)


def _wrapped(words: str, width: int = 100) -> str:
    lines = [""]
    for word in words.split():
        lines[-1:] = (
            [f"{lines[-1]} {word}".strip()]
            if len(lines[-1]) + len(word) < width
            else [lines[-1], word]
        )
    return "\n".join(lines)
