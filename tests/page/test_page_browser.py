"""The page in Chromium: views, filters, order, keys and the address."""

import pytest

pytestmark = pytest.mark.browser
DOWN, RIGHT, ESCAPE, ENTER, TAB = "\ue015", "\ue014", "\ue00c", "\ue007", "\ue004"


@pytest.fixture
def studies(browser, page):
    browser.open(page, "#view=studies&order=given&method=zero-shot")
    yield browser
    assert browser.complaints() == []


def errors_of(sample, method):
    return [one["reports"][method]["errors"] if one["reports"][method] else -1
            for one in sample["studies"]]  # fmt: skip


def report_like(sample, wanted):
    """The study and the method of the first report that `wanted` accepts."""
    return next(
        (index, method)
        for index, study in enumerate(sample["studies"])
        for method, report in enumerate(study["reports"])
        if wanted(report)
    )


def listed(browser):
    return browser.texts(".line .id")


def test_the_worst_study_is_first(browser, page, sample):
    browser.open(page, "#view=studies")  # of the last method
    errors = errors_of(sample, 2)
    worst = sample["studies"][errors.index(max(errors))]["id"]
    assert listed(browser)[0] == worst == browser.text("#study h2")
    browser.choose("#method", "0")
    assert browser.text("#study h2") == worst  # it stays, wherever it is in the list now
    browser.press("w")
    errors = errors_of(sample, 0)
    assert listed(browser)[0] == sample["studies"][errors.index(max(errors))]["id"]
    assert "method=zero-shot" in browser.address()


def test_the_largest_difference_of_two_methods_is_first(studies, sample):
    studies.choose("#order", "difference")
    studies.choose("#other", "2")
    pairs = zip(errors_of(sample, 0), errors_of(sample, 2), strict=True)
    apart = [-1 if -1 in pair else abs(pair[0] - pair[1]) for pair in pairs]
    assert listed(studies)[0] == sample["studies"][apart.index(max(apart))]["id"]


def test_truth_stands_beside_every_shown_method(studies, sample):
    assert studies.texts(".columns h3")[1:] == [
        "Azero-shot",
        "Bin-context, 8 examples",
        "CDIVE adapter",
    ]
    words = "".join(
        p if isinstance(p, str) else p[0] for p in sample["studies"][0]["reference"]["pieces"]
    )
    assert studies.text(".truth .report") == words
    studies.click('.chip input[data-method="1"]')
    assert studies.texts(".columns h3")[1:] == ["Azero-shot", "CDIVE adapter"]
    assert "show=1.3" in studies.address()
    studies.choose("#method", "2")  # the chosen one stands beside the truth
    assert studies.texts(".columns h3")[1:] == ["CDIVE adapter", "Azero-shot"]


KINDS = {"side": "wrong", "severity": "wrong", "both": "wrong"}


def coloured(report, found, denied):
    """The words of each finding in a report, its state, and its colour, if it has one.

    denied: the outcome of a denial: in the truth what is invented, in a report what is missed.
    """
    outcomes = {one["finding"]: one["outcome"] for one in found}
    for words, finding, state in (one for one in report["pieces"] if not isinstance(one, str)):
        outcome = outcomes.get(finding)
        if state == "negative" and outcome != denied:
            outcome = None
        yield [words, state, *([KINDS.get(outcome, outcome)] if outcome else [])]


def test_the_method_whose_outcomes_colour_the_truth_is_shown(studies, page):
    studies.click('.chip input[data-method="0"]')
    assert studies.text(".column.chosen h3") == "Bin-context, 8 examples"
    studies.choose("#method", "0")
    assert studies.text(".column.chosen h3") == "Azero-shot"
    studies.open(page, "#view=studies&show=1.2")
    assert studies.text(".column.chosen h3") == "Azero-shot"
    studies.open(page, "#view=studies&show=2.3&method=in-context%2C+8+examples")
    assert studies.text(".column.chosen h3") == "Bin-context, 8 examples"
    studies.open(page, "#view=studies&show=2.3&method=zero-shot")
    assert studies.text(".column.chosen h3") == "Azero-shot"
    assert studies.count(".columns .column") == 4


def test_findings_are_coloured_by_outcome_in_text_and_truth(studies, sample):
    seen = set()
    for study in sample["studies"][:25]:
        found = study["reports"][0]["found"]
        pairs = [(".truth", study["reference"], found, "invented")]
        for method, report in enumerate(study["reports"]):
            column = f'.column[data-method="{method}"]'
            pairs += [(column, report, report["found"], "missed")] if report else []
            labels = [
                sample["findings"][one["finding"]]["label"]
                for one in (report or {"found": ()})["found"]
            ]
            assert sorted(studies.texts(f"{column} .outcomes .link")) == sorted(labels)
        for column, report, outcomes, denied in pairs:
            wanted = [*coloured(report, outcomes, denied)]
            assert wanted == studies.ask(
                "[...document.querySelectorAll(arguments[0])]"
                ".map((one) => [one.textContent, ...[...one.classList].slice(1)])",
                f"{column} .said",
            )
            seen |= {one[2] for one in wanted if len(one) > 2}
        studies.press("j")
    assert seen == {"hit", "wrong", "missed", "invented"}


def test_each_outcome_has_an_underline_of_its_own(studies):
    lines = studies.ask(
        "[...document.querySelectorAll('.legend .said')].map((one) => "
        "getComputedStyle(one).textDecorationStyle + getComputedStyle(one).textDecorationThickness)"
    )
    assert len({*lines[:4]}) == 4


def test_where_side_or_severity_is_wrong_both_are_said(studies, sample):
    index, wrong = next(
        (at, one) for at, study in enumerate(sample["studies"])
        for one in (study["reports"][0] or {"found": ()})["found"] if one["outcome"] == "side"
    )  # fmt: skip
    for _ in range(index):
        studies.press("j")
    assert f"truth: {wrong['truth']}; stated: {wrong['stated']}" in studies.text(
        '[data-method="0"] .outcomes'
    )


def test_filters_by_finding_and_outcome(studies, sample):
    studies.choose("#finding", "0")
    studies.choose("#outcome", "missed")
    missed = {"finding": 0, "outcome": "missed"}
    wanted = [
        one["id"]
        for one in sample["studies"]
        if any(missed.items() <= found.items() for found in one["reports"][0]["found"])
    ]
    assert 0 < len(wanted) < 60
    assert studies.text("#how-many") == f"{len(wanted)} of 60 studies"
    assert listed(studies)[: len(wanted)] == wanted[: len(listed(studies))]
    assert studies.text("#study h2") == wanted[0]
    studies.click("#clear")
    assert studies.text("#how-many") == "60 studies"


def test_search(studies, sample):
    studies.press("/", "patient-0007")
    studies.ask("new Promise((done) => setTimeout(done, 300))")
    assert listed(studies) == ["study-0014", "study-0015"]
    studies.press("j")  # in the field it is a letter
    studies.ask("new Promise((done) => setTimeout(done, 300))")
    assert studies.text(".lines .none") == "No study passes these filters."
    studies.press(ESCAPE)
    assert studies.text("#how-many") == "60 studies"


def test_keys(studies):
    for key, wanted in (("j", 1), ("j", 2), ("k", 1)):
        studies.press(key)
        assert studies.text("#study h2") == f"study-{wanted:04d}"
    studies.press("n")
    assert studies.text(".column.chosen h3") == "Bin-context, 8 examples"
    studies.press("p", "p")
    assert studies.text(".column.chosen h3") == "CDIVE adapter"
    studies.press(RIGHT)
    assert studies.text(".column.chosen h3") == "Azero-shot"
    for key, view in (("o", "overview"), ("e", "explained"), ("s", "studies")):
        studies.press(key)
        shown = studies.ask(
            "[...document.querySelectorAll('main > section:not([hidden])')].map((one) => one.id)"
        )
        assert shown == [view]
    studies.press("f")
    assert studies.ask("document.activeElement.id") == "finding"
    studies.press(ESCAPE, "w")
    assert studies.ask("document.querySelector('#order').value") == "worst"
    studies.press("?")
    assert studies.count("dialog#keys[open]") == 1
    assert studies.count("#keys dt") >= 10
    studies.press("j")  # not behind the dialog
    before = studies.text("#study h2")
    studies.press(ESCAPE)
    assert studies.count("dialog[open]") == 0 and studies.text("#study h2") == before


def test_the_list_is_one_stop_of_tab_and_arrows_move_in_it(studies):
    assert studies.count('.line[tabindex="0"]') == 1
    assert studies.texts(".line[aria-selected=true] .id") == ["study-0000"]
    studies.ask("document.querySelector('.line[tabindex=\"0\"]').focus()")
    studies.press(DOWN, DOWN)
    assert studies.text("#study h2") == "study-0002"
    assert studies.text(":focus .id") == "study-0002"
    studies.press("\ue010")  # End
    assert studies.text("#study h2") == studies.text(":focus .id") == "study-0059"
    box = "document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"
    line, window = studies.ask(box, ":focus"), studies.ask(box, ".lines")
    assert window["top"] <= line["top"] and line["bottom"] <= window["bottom"] + 1


def test_everything_is_reached_by_tab_and_seen(browser, page):
    for view in ("overview", "studies", "explained"):
        browser.open(page, f"#view={view}")
        wanted = browser.ask(
            "[...document.querySelectorAll('button, select, input, summary, [tabindex=\"0\"]')]"
            ".filter((one) => one.checkVisibility() && one.tabIndex >= 0).length"
        )
        reached = 0
        for _ in range(wanted + 5):
            browser.driver.switch_to.active_element.send_keys(TAB)
            found = browser.ask(
                "((one) => one === document.body ? null : [getComputedStyle(one).outlineStyle,"
                " parseFloat(getComputedStyle(one).outlineWidth), one.outerHTML.slice(0, 80)])"
                "(document.activeElement)"
            )
            if found is None:
                break
            assert found[0] != "none" and found[1] >= 1, found
            reached += 1
        assert reached >= wanted, view


def test_a_film_is_enlarged_by_click_and_by_enter_and_closed_by_escape(studies):
    studies.click("button.film")
    assert studies.count("dialog#film[open] img") == 1
    studies.until("document.querySelector('#film img').naturalWidth", 240)
    studies.press(ESCAPE)
    assert studies.count("dialog[open]") == 0
    assert studies.ask("document.activeElement.className") == "film"
    studies.press(ENTER)
    assert studies.count("dialog#film[open]") == 1
    assert studies.ask("document.querySelector('#film img').alt").startswith(
        "Film 1 of 2, PA, of study"
    )


def test_missing_films_and_reports_are_said(browser, page, sample):
    index = next(at for at, one in enumerate(sample["studies"]) if one["images"][-1]["src"] is None)
    browser.open(page, f"#study=study-{index:04d}")
    assert browser.text(".film.gone").endswith("missing")
    index, method = report_like(sample, lambda report: report is None)
    browser.open(page, f"#study=study-{index:04d}")
    assert "No report" in browser.text(f'.columns [data-method="{method}"]')


def test_a_report_that_did_not_end_says_so(browser, page, sample):
    index, method = report_like(sample, lambda report: report and not report["ended"])
    browser.open(page, f"#study=study-{index:04d}")
    assert browser.text(f'[data-method="{method}"] .flag') == "did not end"


def test_the_address_keeps_what_is_looked_at(studies, page):
    studies.press("j", "j", "j", "n")
    studies.choose("#finding", "1")
    study, address = studies.text("#study h2"), studies.address()
    assert f"study={study}" in address
    studies.open(page, address)
    assert studies.text("#study h2") == study
    assert studies.text(".column.chosen h3") == "Bin-context, 8 examples"
    assert studies.ask("document.querySelector('#finding').value") == "1"
    studies.press("o")
    studies.driver.back()
    studies.settle()
    assert studies.address() == address and not studies.ask(
        "document.getElementById('studies').hidden"
    )


def test_an_address_of_another_page_is_said_and_harmless(browser, page):
    browser.open(
        page, "#study=no-such&method=%E0%A4%A&order=<img src=x onerror=alert(1)>&show=99.-1.x"
    )
    said = browser.text("#notice")
    assert "no-such" in said and "method" in said and "order" in said and "show" in said
    assert browser.count("#notes img") == 0 and browser.count(".line") > 5
    assert browser.complaints() == []


def test_a_finding_of_the_overview_leads_to_its_studies(browser, page, sample):
    browser.open(page)
    browser.click(".findings tbody tr:first-child .link")
    assert browser.ask("document.querySelector('#finding').value") == "0"
    assert not browser.ask("document.getElementById('studies').hidden")
    browser.press("o")
    browser.click(".findings tbody tr:nth-child(2) td.outcome .count.missed")
    counts = sample["findings"][1]["counts"][0]
    assert browser.text("#how-many") == f"{counts['missed']} of 60 studies"
    assert browser.complaints() == []


def test_the_overview_has_every_number(browser, page, sample):
    browser.open(page)
    text = browser.text("#overview")
    for metric in sample["metrics"]:
        assert metric["label"] in text and metric["variant"] in text
        digits = 2 if metric["unit"] == "ratio" else 3
        for scores in sample["scores"]:
            assert f"{scores[metric['key']]['value']:.{digits}f}" in text
    for finding in sample["findings"]:
        assert finding["label"] in text
    assert browser.count(".point") == 3
    # bold: the best by the digits that are shown; near 1 for the length
    best = browser.texts(".card .best .named")
    assert best == ["CDIVE adapter"] * 6
    assert browser.count(".clear") == 2 * 6 and "better; 0." in text and "worse" not in text
    assert "resampled by patient" in text and "rare findings" in text
    assert browser.texts("#overview h2") == [
        "Scores", "Methods", "Prompt length beside quality", "Differences",
        "By class and by how common a finding is", "Findings", "Training"]  # fmt: skip
    assert browser.count("#overview .curve") == 2 * 6  # with its key
    browser.choose("#group-score", "finding_recall")
    recall = sample["classes"][2]["Pleural Effusion"]["scores"]["finding_recall"]
    assert f"{recall:.3f}" in browser.text(".heat:nth-child(5)")


def test_curves_are_read_by_arrow_keys(browser, page, sample):
    browser.open(page)
    curve = sample["training"][0]["curves"][0]
    browser.ask("document.querySelector('#overview .card .chart').focus()")
    browser.press("\ue011", RIGHT)  # Home
    assert browser.text(".card .readout b") == f"{curve['values'][1]:.3f}"
    assert f"step {curve['steps'][1]}" in browser.text(".card .chart + *, .card .readout .faint")


def test_the_inside_is_linked_across_its_charts(browser, page, sample):
    browser.open(page, "#view=explained&study=study-0001")
    inside = next(one for one in sample["explained"]["studies"] if one["study"] == 1)
    assert browser.count(".token") == len(inside["tokens"])
    browser.ask("document.querySelector('.token[tabindex=\"0\"]').focus()")
    browser.press(RIGHT, RIGHT)
    assert f"{inside['probability'][2]:#.4g}" in browser.text(".token-readout")
    assert all("3 " in one for one in browser.texts(".heat-map .readout, .chart + .readout"))
    browser.ask("document.querySelector('.map').focus()")
    browser.press(RIGHT, DOWN)
    assert "layer 26" in browser.text(".heat-map .readout")
    assert browser.text(".token[aria-selected=true]") == inside["tokens"][3].replace(" ", "·")
    browser.choose("#layer", "1")
    assert "vector 31" in browser.texts(".heat-map .readout")[1]
    browser.press(ESCAPE, "j")
    assert "study=study-0002" in browser.address()
    assert browser.complaints() == []


def test_a_key_that_is_held_down_is_not_refused(studies):
    """Browsers stop an address that changes too often, with a complaint."""
    studies.driver.execute_script(
        "for (let at = 0; at < 500; at += 1) document.dispatchEvent("
        "new KeyboardEvent('keydown', { key: at % 20 < 11 ? 'j' : 'k' }))"
    )
    heading = studies.text("#study h2")
    assert f"study={heading}" in studies.address() and heading == "study-0050"
