"""Renders benchmarks/README.md from benchmarks/results/*.json: tables, and a plot per operator.

    python -m benchmarks.render_page

Every figure of that page is in a results file; a test renders it again. The same holds for the
sentence on llama.cpp in the project's README.md.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import page_llama_cpp
from benchmarks.page_table import number, table
from benchmarks.page_text import CLOSING, INTRODUCTION, SECTIONS, SOFT

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE / "README.md"
FRONT = HERE.parent / "README.md"

Result = dict[str, Any]


def origin(name: str, result: Result) -> list[str]:
    """Returns machine, versions and commit of a results file."""
    machine = result.get("machine", {})
    machine = {"processor": machine} if isinstance(machine, str) else machine
    result = {**machine, **result}
    versions = result.get("versions") or {}
    device = result.get("device") or result.get("processor") or "unknown"
    cores = result.get("cores")
    parts = [str(device)]
    parts += [f"{cores} cores"] if cores and "device" in result and "host" not in result else []
    for package in ("torch", "triton", "transformers", "python"):
        version = result.get(package) or versions.get(package)
        parts += [f"{package} {version}"] if version else []
    parts += [f"commit {result['commit'][:9]}"] if result.get("commit") else []
    parts += [str(result["date"])] if result.get("date") else []
    parts += [f"load {result['load_1min']}"] if "load_1min" in result else []
    what = str(result.get("what") or result.get("about") or result.get("command") or "")
    lines = [f"[{name}](results/{name}.json): {', '.join(parts)}."]
    lines += [what.split(";")[0] + ".", ""] if what else [""]
    if result.get("complete") is False:
        lines[-2] += f" Not complete: {result.get('failed') or 'time ran out'}."
    return lines


def one_clock(times: dict[str, float]) -> float:
    """Returns the seconds by the clock that results are compared by."""
    return times.get("gpu") or times["cpu"]


def not_run(case: Result) -> list[str]:
    """Returns the peers that are not in the table, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in case.get("not_run", {}).items():
        reasons.setdefault(reason, []).append(name)
    if not reasons:
        return []
    parts = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    return [f"Not run: {parts}.", ""]


def operator_table(case: Result, unit: str, rate: str) -> list[str]:
    """Returns the table of one case of an operator: every way, with rate, floor and memory."""
    seconds: dict[str, Any] = case["seconds"]
    both = seconds["forward+backward"]
    forward = seconds.get("forward", {})
    peaks = case.get("peak_extra_bytes", {})
    scale = {"ms": 1e3, "us": 1e6}[unit]
    floor = one_clock(both["floor"]) if "floor" in both else None
    rates = case.get(rate, {}).get("forward+backward", {})
    rows = []
    for name in dict.fromkeys([*both, *forward]):
        time = one_clock(both[name]) if name in both else None
        peak = peaks.get(name, {}).get("forward+backward")
        rows.append(
            [
                name,
                number(scale * one_clock(forward[name])) if name in forward else "",
                number(scale * time) if time else "",
                number(time / one_clock(both["dive"])) if time else "",
                f"{100 * floor / time:.0f} %" if floor and time else "",
                number(rates.get(name)),
                number(peak / 2**20) if peak is not None else "",
            ]
        )
    head = ["", f"forward {unit}", f"forward+backward {unit}", "times dive", "of the floor"]
    return table([*head, {"tflops": "TFLOP/s", "gb_s": "GB/s"}[rate], "peak extra MiB"], rows)


def cross_entropy(result: Result) -> list[str]:
    lines = []
    for case in result["cases"]:
        sizes = f"N {case['tokens']}, D {case['width']}, V {case['vocabulary']}"
        lines += [f"**{case['case']}** ({sizes}, {case['live']} live, {case['dtype']})", ""]
        lines += operator_table(case, "ms", "tflops") + not_run(case)
    return lines


def soft_floor(result: Result) -> list[str]:
    """Returns a remark if the floor of a CPU was only measured by torch."""
    by_torch = any("floor_by" not in case for case in result.get("cases", result.get("results")))
    on_gpu = any(kind in str(result["device"]) for kind in ("NVIDIA", "CUDA", "GPU"))
    return [SOFT, ""] if by_torch and not on_gpu else []


def steer(result: Result) -> list[str]:
    lines = soft_floor(result)
    for case in result["cases"]:
        sizes = f"{case['tokens']} x {case['width']}, rank {case['rank']}"
        lines += [f"**{case['case']}** ({sizes}, {case['dtype']})", ""]
        lines += operator_table(case, "us", "gb_s") + not_run(case)
    return lines


def steer_grouped(result: Result) -> list[str]:
    """Returns us per way, and in times of the operator in the same turns."""
    cases = result["cases"]
    ways = list(dict.fromkeys(way for case in cases for way in case["seconds"]))
    rows = []
    for case in cases:
        taken = {way: one_clock(one) for way, one in case["seconds"].items()}
        sizes = f"{case['tokens']} x {case['width']}, {case['adapters']} of rank {case['rank']}"
        cells = [
            f"{number(1e6 * taken[way])} ({number(taken[way] / taken['dive'])})"
            if way in taken
            else ""
            for way in ways
        ]
        rows.append([f"{case['case']} ({sizes}, {case['dtype']})", *cells])
    return table(["us (times dive)", *ways], rows) + [
        line for case in cases for line in not_run(case)
    ]


def decode_cpu(result: Result) -> list[str]:
    rows = []
    for one in result["results"]:
        ms, steering = one["ms_a_token"], one["steering_percent_of_step_median_low_high"]
        rows.append(
            [
                f"{one['shape']}, {one['dtype']}",
                *(number(ms[way]) for way in ("session", "session_steered")),
                *(number(ms[way]) for way in ("transformers", "transformers_steered")),
                f"{number(one['speedup'])} / {number(one['speedup_steered'])}",
                number(one["floor_ms"]),
                f"{100 * one['share_of_floor']:.0f} %",
                f"{steering[0]:.1f} % ({steering[1]:.1f} to {steering[2]:.1f})",
                f"{one['hooks_percent']:.1f} %",
            ]
        )
    head = ["ms per token", "session", "steered", "transformers", "steered", "faster", "floor",
            "of the floor", "steering costs (95%)", "in transformers"]  # fmt: skip
    return soft_floor(result) + table(head, rows)


def decode_pairs(result: Result) -> list[str]:
    rows = []
    for case in result["cases"]:
        if "not_run" in case:
            rows.append([case["case"], "not run", "", "", "", case["not_run"]])
            continue
        own, beside = (case["ms_a_token"][case[key]] for key in ("way", "beside"))
        median, low, high = case["times_beside"]
        chosen = list(case["plan"].values())
        engines = {one["engine"] for one in chosen}
        reasons = {one["reason"] for one in chosen if one["engine"] != "dive._C"}
        rows.append(
            [
                case["case"],
                number(own),
                f"{100 * case['share_of_floor'][case['way']]:.0f} %",
                f"{case['beside']}: {number(beside)}",
                f"{median:.3f} ({low:.3f} to {high:.3f})",
                "; ".join([*sorted(engines), *sorted(reasons)]),
            ]
        )
    head = [
        "",
        "ms per token",
        "of the floor",
        "against, ms",
        "times it (95%)",
        "the session ran in",
    ]
    return soft_floor(result) + table(head, rows)


def steer_step(result: Result) -> list[str]:
    rows = []
    for one in result["results"]:
        us = one["microseconds"]
        rows.append(
            [
                f"{one['dtype']}, {one['width']} wide, {one['rows']} rows, {one['weights']}",
                *(number(us[k]) for k in ("fused", "without_steering", "pytorch")),
                number(us["pytorch_without_steering"]),
                number(one["steering_us"]),
            ]
        )
    head = ["us", "fused", "without steering", "PyTorch", "PyTorch without", "steering"]
    return table(head, rows)


def distill(result: Result) -> list[str]:
    rows = [[f"{r['name']} ({r['group']})", number(r["median_ms"])] for r in result["rows"]]
    return table(["", "median ms"], rows)


def distill_run(result: Result) -> list[str]:
    rows = []
    for case in result["cases"]:
        config = case["config"]
        rows.append(
            [
                case["case"],
                str(case["studies"]),
                number(case["seconds"]),
                number(case.get("projected_seconds_1000_studies")),
                number(case.get("peak_gib")),
                f"{config['batch_size']} x {config['gradient_accumulation']}",
                "yes" if config["gradient_checkpointing"] else "no",
            ]
        )
    head = ["", "studies", "seconds", "projected for 1000", "peak GiB", "batch", "checkpointing"]
    return table(head, rows)


def readers(result: Result) -> list[str]:
    keys = ("studies", "images", "first_study_s", "all_s", "peak_mib")
    head = ["", "studies", "images", "first study s", "all s", "peak MiB"]
    return table(head, [[r["tree"], *(number(r[key]) for key in keys)] for r in result["results"]])


def survey(result: Result) -> list[str]:
    columns = {
        "studies": "studies", "studies_read_s": "read s", "surveyed_s": "surveyed s",
        "first_step_s": "first step s", "cpu_s": "CPU s", "peak_mib": "peak MiB",
        "load_1min": "load",
    }  # fmt: skip
    rows = [[r["backbone"], *(number(r[key]) for key in columns)] for r in result["results"]]
    return table(["", *columns.values()], rows)


def stage(result: Result) -> list[str]:
    rows = [["", str(result["state"]), str(result.get("reason", ""))]] if "state" in result else []
    for tool in ("memcheck", "racecheck"):
        if tool in result:
            found = result[tool]
            rows.append([tool, found["state"], found.get("reason") or " ".join(found["summary"])])
    for word in ("passed", "failed", "skipped"):
        if word in result:
            rows.append([f"tests {word}", str(result[word]), ""])
    for case in result.get("cases", []):
        rows.append([case["case"], "runs", ", ".join(case["runs"])])
        rows += [[case["case"], name, reason] for name, reason in case["not_run"].items()]
    return table(["", "", ""], rows)


def tuning(result: Result) -> list[str]:
    keys = result["cases"]
    beaten = sum(one["best"] != "default" for one in keys)
    return [
        f"{len(keys)} keys, of which {beaten} have a faster configuration than the default.",
        "",
    ]


def other(result: Result) -> list[str]:
    """Returns the records of a file of any other kind as they are."""
    rows: list[Result] = next((result[k] for k in ("rows", "results", "cases") if k in result), [])
    head = list(dict.fromkeys(key for row in rows for key in row))
    return table(head, [[cell(row.get(key)) for key in head] for row in rows]) if rows else []


def cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(cell(one) for one in value)
    return number(value) if isinstance(value, float) else "" if value is None else str(value)


KINDS: dict[str, Callable[[Result], list[str]]] = {
    "cross-entropy": cross_entropy,
    "steer": steer,
    "steer-grouped": steer_grouped,
    "decode": decode_cpu,
    "decode-pairs": decode_pairs,
    "llama-cpp": page_llama_cpp.case_table,
    "steer-step": steer_step,
    "distill-run": distill_run,
    "distill": distill,
    "readers": readers,
    "survey": survey,
    "tune": tuning,
    **dict.fromkeys(("engine-threads", "refill", "vllm", "other"), other),
    **dict.fromkeys(("build", "test", "peers", "sanitize"), stage),
}


OPERATORS = ("cross-entropy", "steer", "decode")  # those with a plot


def kind_of(name: str) -> str:
    """Returns the kind of a file: cross-entropy for cpu-cross-entropy-2-threads."""
    if name in KINDS:
        return name
    rest = name.partition("-")[2]
    found = [kind for kind in KINDS if rest == kind or rest.startswith(f"{kind}-")]
    return max(found, key=len, default="other")


def load(folder: Path = RESULTS) -> dict[str, dict[str, Result]]:
    """Returns contents by kind and file name; GPUs before CPUs."""
    found: dict[str, dict[str, Result]] = {}
    paths = sorted(folder.glob("*.json"), key=lambda p: (p.name.startswith("cpu"), p.name))
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(kind_of(path.stem), {})[path.stem] = content
    return found


def render_page(folder: Path = RESULTS) -> str:
    """Returns the whole page."""
    found = load(folder)
    lines = [INTRODUCTION]
    for title, kinds, words in SECTIONS:
        files = [(kind, *item) for kind in kinds for item in found.get(kind, {}).items()]
        if not files:
            continue
        lines += [f"## {title}", "", words, ""] if words else [f"## {title}", ""]
        lines += [
            f"![{title}](results/{kind}.svg)\n"
            for kind in OPERATORS
            if kind in kinds and bars(kind, found)
        ]
        for kind, name, result in files:
            lines += origin(name, result) + KINDS[kind](result)
    return "\n".join([*lines, CLOSING])


# plots


def bars(kind: str, found: dict[str, dict[str, Result]]) -> dict[str, dict[str, float]]:
    """Returns the bars of an operator's plot: case, way, and its time over dive's."""
    shown: dict[str, dict[str, float]] = {}
    files = found.get(kind, {})
    if kind == "decode":
        files = found.get("decode-pairs", {}) | files
    for name, result in files.items():
        device = name.split("-")[0]
        if kind in ("cross-entropy", "steer"):
            for case in result["cases"][:6]:
                both = case["seconds"]["forward+backward"]
                times = {way: one_clock(one) for way, one in both.items()}
                label = f"{device}: {case['case']}"
                shown[label] = {way: one / times["dive"] for way, one in times.items()}
        elif kind == "decode" and "results" in result:
            for one in result["results"]:
                own = one["ms_a_token"]["session"]
                shown[f"{device}: {one['shape']}, {one['dtype']}"] = {
                    way: ms / own
                    for way, ms in {**one["ms_a_token"], "floor": one["floor_ms"]}.items()
                }
        elif kind == "decode":
            for case in result["cases"]:
                if "not_run" in case or case["beside"] != "session":
                    continue
                ways = shown.setdefault(f"{device}: {case['case'].split(':')[0]}", {"session": 1.0})
                ways[case["way"]] = case["times_beside"][0]
                ways.setdefault("floor", case["share_of_floor"]["session"])
    return shown


def digest(shown: dict[str, dict[str, float]]) -> str:
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def plot(kind: str, shown: dict[str, dict[str, float]], path: Path) -> None:
    """Draws horizontal bars, one group per case; the file has the `digest` of its data."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": kind, "font.size": 8}
    ways = list(dict.fromkeys(way for case in shown.values() for way in case))
    colours = dict(zip(ways, [pyplot.get_cmap("tab20")(i % 20) for i in range(len(ways))],
                       strict=True))  # fmt: skip
    ticks, labels, y = [], [], 0.0
    height = sum(len(case) + 1.5 for case in shown.values())
    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.15 * height), layout="constrained")
    for label, case in shown.items():
        axes.text(0.0, y, label, weight="bold", va="center", transform=axes.get_yaxis_transform())
        for way, value in case.items():
            y += 1
            axes.barh(y, value, color=colours[way], height=0.8)
            axes.text(value, y, f" {value:.2f}", va="center", fontsize=7)
            ticks.append(y)
            labels.append(way)
        y += 1.5
    axes.set_yticks(ticks, labels)
    axes.set_ylim(y - 0.5, -1.2)
    axes.axvline(1, color="black", linewidth=0.8)
    own = "the session's" if kind == "decode" else "dive's"
    axes.set_xlabel(f"time over {own} (longer is slower)")
    figure.savefig(path, metadata={"Description": digest(shown), "Date": None})
    pyplot.close(figure)


def main() -> None:
    found = load()
    PAGE.write_text(render_page(), encoding="utf-8")
    print(PAGE)
    front = FRONT.read_text(encoding="utf-8")
    FRONT.write_text(page_llama_cpp.fill(front, found.get("llama-cpp", {})), encoding="utf-8")
    print(FRONT)
    for kind in OPERATORS:
        shown = bars(kind, found)
        if shown:
            plot(kind, shown, RESULTS / f"{kind}.svg")
            print(RESULTS / f"{kind}.svg")


if __name__ == "__main__":
    main()
