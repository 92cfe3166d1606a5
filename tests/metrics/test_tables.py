"""Results as LaTeX and CSV: every number is there, and no user's text is obeyed."""

import csv
import io
import re

import pytest

import dive
from dive.metrics.tables import csv_table, escaped, latex_table

REFERENCES = ["Large left effusion. Edema.", "No pleural effusion.", "Edema.", "Scoliosis."]
PREDICTIONS = ["Left effusion.", "Rib fracture.", "Edema.", "Scoliosis. Edema."]
OTHERS = ["Edema.", "Effusion.", "Edema.", "Clear."]
PATIENTS = ["a", "a", "b", "c"]
METRICS = ["bleu", "findings"]
FULL = {"bootstrap": 30, "patients": PATIENTS}
# all that LaTeX is told to do
COMMANDS = {
    "begin", "end", "centering", "toprule", "midrule", "bottomrule", "multicolumn", "textit",
    "quad", "smallskip", "linewidth", "footnotesize", "raggedright", "par", "usepackage",
    "setlength", "tabcolsep",
}  # fmt: skip
SIGNS = {
    "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
    "textquotedbl", "textasciigrave",
}  # fmt: skip
HOSTILE = [
    r"\input{/etc/passwd}.jsonl", "50% & $x^2$ #_1 ~{a}.jsonl", "=HYPERLINK(1).jsonl", "+1", "-1",
    "@sum", "a\n\n\\end{table}\n=1+1", "\u202egnp.exe", "\x1b[2J", 'a",b', "\t=1", "<b>|`'",
]  # fmt: skip


def _single():
    return dive.evaluate(PREDICTIONS, REFERENCES, METRICS, baseline=OTHERS, **FULL)


def _seeds():
    return dive.evaluate_seeds(
        [PREDICTIONS, OTHERS], REFERENCES, METRICS, baseline=[OTHERS], **FULL
    )


def _read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), strict=True))


def _number(text: str) -> float | None:
    return float(text) if text else None


@pytest.mark.parametrize("make", [_single, _seeds])
def test_csv_has_every_number_with_every_digit(make) -> None:
    result = make()
    lines = {
        (line["group"], line["name"], line["score"]): line
        for line in _read(csv_table(result, ["a.jsonl"], ["b.jsonl"]))
    }
    groups = {("all", ""): result | {"scores": {key: result[key] for key in result["variants"]}}}
    groups |= {("class", name): one for name, one in result["classes"].items()}
    groups |= {
        ("tercile", name): one for name, one in result["terciles"].items() if "scores" in one
    }
    count = 1  # what no reference states
    for key, group in groups.items():
        for name, value in group["scores"].items():
            line, count = lines[(*key, name)], count + 1
            assert _number(line["value"]) == value
            low_high = [_number(line["low"]), _number(line["high"])]
            assert low_high == (group["intervals"][name] or [None, None])
            assert _number(line["baseline"]) == group["baseline"][name]
            gap = group["differences"][name]
            assert _number(line["difference"]) == gap["difference"]
            assert _number(line["p"]) == gap["p"]
            ends = [_number(line["difference_low"]), _number(line["difference_high"])]
            assert ends == (gap["interval"] or [None, None])
            assert line["variant"] == result["variants"][name]
            spread = group.get("seeds", {}).get("scores", {}).get(name)
            assert line["sd_seeds"] == (
                "" if not spread or spread["sd_seeds"] is None else repr(spread["sd_seeds"])
            )
            if spread:
                values = line["seed_values"].split("; ")
                assert values == [repr(v).lower() for v in spread["values"]]  # "none", "0.5"
                assert _number(line["sd_patients"]) == spread["sd_patients"]
    assert len(lines) == count
    effusion = lines[("class", "Pleural Effusion", "finding_f1")]
    assert (effusion["references_least"], effusion["references_most"]) == ("1", "1")
    assert (effusion["unit"], effusion["units"], effusion["scored"]) == ("patient", "3", "4")
    assert lines[("tercile", "common", "finding_f1")]["findings"] == "Edema"
    invented = lines[("tercile", "unreferenced", "predicted")]
    assert invented["findings"] == "Fracture"
    assert _number(invented["value"]) == result["terciles"]["unreferenced"]["predicted"]


def test_csv_of_little() -> None:
    result = dive.evaluate(PREDICTIONS, REFERENCES, ["rougeL"])
    lines = _read(csv_table(result, ["a.jsonl"]))
    assert [line["score"] for line in lines] == ["rougeL", "length_ratio"]
    assert lines[0]["value"] == repr(result["rougeL"])
    assert {lines[0][key] for key in ("low", "baseline", "p", "sd_seeds", "unit")} == {""}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_cell_is_a_formula(name: str) -> None:
    text = csv_table(_single(), [name], ["b.jsonl"])
    for line in csv.reader(io.StringIO(text), strict=True):
        for cell in line:
            assert "\n" not in cell and not re.search("[\x00-\x1f\u202e]", cell)
            if cell.startswith(("=", "+", "-", "@", "\t")):
                float(cell)  # a number
    shown = _read(text)[0]["predictions"]
    assert re.sub(r"\W|x1b|u202e", "", shown) == re.sub(r"\W", "", name)


@pytest.mark.parametrize("make", [_single, _seeds])
@pytest.mark.parametrize("name", ["a.jsonl", *HOSTILE])
def test_latex_is_well_formed(make, name: str) -> None:
    text = latex_table(make(), [name], [name])
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= COMMANDS | SIGNS
    begun = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    assert begun == [
        ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("begin", "minipage"),
        ("end", "minipage"), ("end", "table"),
    ]  # fmt: skip
    plain = re.sub(r"\\[&%$#_{}]", "", text)
    assert plain.count("{") == plain.count("}")
    first, *rest = plain.splitlines()
    assert first.startswith("% dive ") and not any("%" in line for line in rest)
    (columns,) = re.findall(r"\\begin\{tabular\}\{(l(r+))\}", text)
    inside = plain[plain.index("\\toprule") : plain.index("\\bottomrule")].splitlines()
    cells = [line for line in inside if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count("&") for line in cells} == {len(columns[1])}
    after = plain[plain.index("\\bottomrule") :]
    assert "&" not in after and "#" not in after and "$" not in after


def test_latex_has_values_groups_and_variants() -> None:
    result = _single()
    text = latex_table(result, ["ours_1.jsonl"], ["b&w.jsonl"])
    assert r"95\% interval" in text and r"ours\_1.jsonl" in text and r"Baseline: b\&w.jsonl" in text
    low, high = result["intervals"]["bleu1"]
    assert f"bleu1 & ${result['bleu1']:.4f}$ & ${low:.4f}$ to ${high:.4f}$ & " in text
    gap = result["differences"]["finding_f1"]
    assert f"${gap['difference']:+.4f}$" in text and f"${gap['p']:.3f}$" in text
    assert r"\textit{Pleural Effusion, in 1 reference}" in text
    assert r"\textit{common findings (1, each in 2 references)}" in text
    assert "Lung Lesion," not in text.split("In no reference")[0]
    assert "In no reference: " in text and "Common findings: Edema." in text
    assert "In predictions alone, once: Fracture." in text
    for words in result["variants"].values():
        assert escaped(words) in text
    assert "30 resamples of 3 patients, each with all their reports" in text
    assert "Each p is of one score alone" in text


def test_latex_has_no_column_that_was_not_asked_for() -> None:
    text = latex_table(dive.evaluate(PREDICTIONS, REFERENCES, METRICS), ["a"])
    assert "interval" not in text and "Baseline" not in text and "$p$" not in text
    assert r"\begin{tabular}{lr}" in text
    assert "Score & Value \\\\" in text
    assert r"\quad finding\_recall & --" not in text  # those classes have a reference


def test_what_is_undefined_is_a_dash() -> None:
    result = dive.evaluate(["Clear."], ["Edema."], ["findings"])
    assert r"\quad finding\_precision & -- \\" in latex_table(result, ["a"])
    (line,) = [
        line
        for line in _read(csv_table(result, ["a"]))
        if (line["name"], line["score"]) == ("Edema", "finding_precision")
    ]
    assert line["value"] == ""


def test_seed_values_below_0_are_numbers() -> None:
    """RadCliQ is below 0 where predictions are good; no sign for spreadsheets stands before it."""
    result = _seeds()
    result["seeds"]["scores"]["bleu1"]["values"] = [-0.5, 0.25]
    lines = _read(csv_table(result, ["a.jsonl", "b.jsonl"]))
    assert [line["seed_values"] for line in lines if line["score"] == "bleu1"] == ["-0.5; 0.25"]
