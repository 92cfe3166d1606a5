"""Texts of strangers on the page: nothing of them runs, becomes an element or asks for anything."""

import copy
import json

import pytest
from page_samples import page_data

from dive.page.render import write_page

pytestmark = pytest.mark.browser
NASTY = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<!--<script>",
    "\"'><svg onload=window.pwned=1>",
    "javascript:window.pwned=1",
    "\u202eevil\u2066 \u200f",
    "\x00\x1b[31m\x07\x9b",
    "\U0001f600 \ud800 \udfff",
    "{{ 7*7 }} ${7*7} __proto__ constructor",
    "\u2028\u2029]]>&amp;&lt;",
    "w" * 10_000,
    "",
)


def nasty(at):
    return NASTY[at % len(NASTY)]


def spoiled():
    """The samples, with every text replaced or followed by something hostile."""
    data = page_data(24, 4, explained=4)
    data["title"] = "".join(NASTY[:4])
    data["version"] = data["target"] = nasty(1)
    data["notes"] = [*NASTY]
    data["bootstrap"]["unit"] = nasty(0)
    data["facts"] = [[one, one] for one in NASTY]
    for at, method in enumerate(data["methods"]):
        method["name"], method["file"] = nasty(at), nasty(at + 4)
    for at, finding in enumerate(data["findings"]):
        finding["name"] = finding["label"] = nasty(at)
        finding["cls"] = nasty(at + 3)
    for at, metric in enumerate(data["metrics"]):
        metric["label"], metric["variant"] = nasty(at), nasty(at + 1)
    for groups in data["classes"]:
        for at, name in enumerate([*groups]):
            groups[nasty(at) + "#"] = groups.pop(name)
    data["terciles"][0]["rare"]["findings"] = [*NASTY]
    for at, study in enumerate(data["studies"]):
        study["id"], study["patient"], study["indication"] = nasty(at), nasty(at + 5), nasty(at + 2)
        study["images"][0]["view"] = nasty(at)
        sources = (
            "javascript:window.pwned=1",
            "https://example.com/a.png",
            "//example.com/a.png",
            "data:image/svg+xml,<svg onload=window.pwned=1>",
            "data:text/html,<script>",
        )
        study["images"].append(study["images"][0] | {"src": sources[at % len(sources)]})
        for report in [study["reference"], *study["reports"]]:
            if report:
                report["pieces"] = [nasty(at), [nasty(at + 1), 0, "positive"], nasty(at + 2),
                                    [nasty(at + 3), 1, "uncertain"]]  # fmt: skip
                report["scores"] = {one: 0.5 for one in NASTY}
                for found in report["found"]:
                    found["truth"], found["stated"] = nasty(at), nasty(at + 6)
    data["training"][0]["name"] = nasty(0)
    for at, curve in enumerate(data["training"][0]["curves"]):
        curve["name"] = nasty(at)
    data["explained"]["adapter"] = nasty(2)
    for inside in data["explained"]["studies"]:
        inside["tokens"] = [nasty(at) for at in range(len(inside["tokens"]))]
    return data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "page <b>&#x202e;.html"
    write_page(path, spoiled())
    return path


def look_around(browser):
    """Every view, every study, filters, a search and the dialogs."""
    browser.press("o", "s")
    for _ in range(24):
        browser.press("j")
    browser.press("n", "n", "f", "\ue00c", "w", "?", "\ue00c", "e", "j", "j", "\ue014", "o")
    browser.ask("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    browser.press("s", "/", "<script>", "\ue00c")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_runs_and_nothing_is_asked_for(browser, hostile, width):
    browser.open(hostile, width=width)
    look_around(browser)
    assert browser.ask("typeof window.pwned") == "undefined"
    assert browser.complaints() == []
    assert browser.requests() == [hostile.as_uri()]
    assert not any("example.com" in one for one in browser.texts(".film.gone"))
    assert browser.ask("performance.getEntriesByType('resource').length") == 0
    assert browser.count("script") == 2
    for name in ("iframe", "object", "embed", "form", "base", "a:not(.skip)", "main svg svg"):
        assert browser.count(name) == 0, name
    assert browser.ask(
        "[...document.querySelectorAll('*')].every((one) => [...one.attributes].every("
        "({ name }) => !name.startsWith('on')))"
    )
    assert browser.ask(
        "[...document.images].every((one) => /^data:image\\/jpeg;base64,/.test(one.src))"
    )
    assert browser.ask("document.documentElement.scrollWidth") <= width


def test_every_text_is_there_letter_by_letter(browser, hostile):
    browser.open(hostile, "#view=studies&order=given")
    assert browser.text("#study h2") == NASTY[0] and browser.text(".truth .report").startswith(
        NASTY[0]
    )
    assert browser.text("title") == browser.text("#title") == "".join(NASTY[:4])
    for step, wanted in ((5, "\\u202eevil\\u2066 \\u200f"), (6, "\\x00\\x1b[31m\\x07\\x9b"),
                         (7, "\U0001f600 \\ud800 \\udfff"), (11, "(empty)")):  # fmt: skip
        browser.open(hostile, "#view=studies&order=given")
        browser.press(*"j" * step)
        assert browser.text("#study h2") == wanted
    assert (
        browser.ask("getComputedStyle(document.querySelector('#study h2 bdi')).unicodeBidi")
        == "isolate"
    )


def test_a_case_with_a_hostile_id_can_be_linked_to(browser, hostile):
    browser.open(hostile, "#view=studies&order=given")
    for at in range(1, 12):
        browser.press("j")
        address, heading = browser.address(), browser.text("#study h2")
        position = browser.ask("document.querySelector('.line[aria-selected=true]').dataset.at")
        assert position == str(at)
        browser.open(hostile, address)
        assert browser.text("#study h2") == heading
        assert browser.count("#notice") == 0


@pytest.mark.parametrize(
    "address",
    [
        "#study=%3Cimg%20src=x%20onerror=window.pwned=1%3E&method=__proto__&view=constructor",
        "#view=javascript:alert(1)&theme=%22%3E%3Cscript%3E&q=%00%FF%ED%A0%80&score=toString",
        "#" + "study=" * 5000,
        "#%%%&&&===&show=1e9.-1.NaN&than=@99999999999&finding=@0",
    ],
)
def test_a_hostile_address_is_inert(browser, page, address):
    browser.open(page, address)
    assert browser.ask("typeof window.pwned") == "undefined"
    assert browser.count("#overview-parts .card") == 6 and browser.complaints() == []
    browser.press("s", "j", "k")
    assert browser.text("#study h2").startswith("study-") and browser.complaints() == []


def test_the_policy_stops_what_a_mistake_of_the_page_would_let_in(browser, page):
    browser.open(page)
    refused = (
        "(() => { try { const one = document.createElement('div');"
        " one.innerHTML = '<img src=x onerror=window.pwned=1>'; return false }"
        " catch (error) { return error instanceof TypeError } })()"
    )
    assert browser.ask(refused)
    browser.driver.execute_script(
        "const one = document.createElement('img'); one.src = 'https://example.com/a.png';"
        "document.body.append(one)"
    )
    browser.settle()
    assert any("example.com" in one and "img-src" in one for one in browser.complaints())


def test_images_beside_the_page_are_shown_and_broken_ones_said(browser, sample, tmp_path):
    import base64

    data = copy.deepcopy(sample)
    data["studies"] = data["studies"][:2]
    data["explained"] = None
    embedded = data["studies"][0]["images"][0]["src"]
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a b#1.jpg").write_bytes(base64.b64decode(embedded.split(",")[1]))
    images = [{"src": name, "width": 256, "height": 312, "view": None}
              for name in ("films/a%20b%231.jpg", "films/gone.jpg")]  # fmt: skip
    data["studies"][0]["images"] = images
    write_page(tmp_path / "page.html", data)
    browser.open(tmp_path / "page.html", "#study=study-0000")
    browser.until("document.querySelector('button.film img').naturalWidth", 240)
    browser.until(
        "document.querySelector('.film.gone')?.textContent", "Film 2 of 2: cannot be read"
    )
    assert {one.rsplit("/", 1)[1] for one in browser.requests()} <= {
        "page.html#study=study-0000", "page.html", "a%20b%231.jpg", "gone.jpg"}  # fmt: skip


def test_a_page_of_nothing_is_a_page(browser, tmp_path):
    data = page_data(0, 0, explained=0) | {
        "findings": [], "metrics": [], "classes": [], "terciles": [], "differences": [],
        "training": [], "bootstrap": None, "notes": [], "scores": [], "methods": []}  # fmt: skip
    data.pop("facts")
    json.dumps(data)
    write_page(tmp_path / "page.html", data)
    browser.open(tmp_path / "page.html")
    look_around(browser)
    assert browser.complaints() == [] and "There are no studies." in browser.text("#study")
