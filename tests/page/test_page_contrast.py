"""Colours: every text against what is behind it, light and dark (WCAG 2.2, AA)."""

from pathlib import Path

import pytest
from page_samples import page_data

from dive.page.render import write_page

pytestmark = pytest.mark.browser
READ = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


@pytest.fixture(params=["light", "dark"])
def scheme(request, browser):
    browser.scheme(request.param)
    yield request.param
    browser.scheme("")


@pytest.mark.parametrize("view", ["overview", "studies", "explained"])
def test_texts_differ_enough_from_what_is_behind(browser, page, scheme, view):
    browser.open(page, f"#view={view}")
    browser.ask("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    if view == "studies":  # with every kind of finding, and each method in turn
        browser.press("w", "j", "n", "j")
    found = browser.driver.execute_script(READ + "return textContrasts()")
    assert len(found) > 12
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
    dark = browser.ask("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_bars_and_signs_differ_enough_from_what_is_behind(browser, page, scheme):
    browser.open(page)
    found = browser.driver.execute_script(READ + "return signContrasts()")
    assert len(found) > 50
    assert [one for one in found if one[1] < 3] == []


def test_the_theme_can_be_chosen_against_the_system(browser, page, scheme):
    other = {"light": "dark", "dark": "light"}[scheme]
    browser.open(page, f"#theme={other}")
    white = browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert white == (other == "light")
    browser.press("t")
    assert "theme" not in browser.address() or other == "light"


def test_the_methods_colours_are_apart_in_both_schemes(browser, tmp_path, scheme):
    write_page(tmp_path / "page.html", page_data(4, 10))
    browser.open(tmp_path / "page.html")
    found = browser.driver.execute_script(
        READ + "return [...document.querySelectorAll('.chip .badge')].map((one) =>"
        "[getComputedStyle(one).backgroundColor, one.textContent, contrast(parts("
        "getComputedStyle(one).color), parts(getComputedStyle(one).backgroundColor))])"
    )
    assert len({one[0] for one in found}) == 8 and len({one[1] for one in found}) == 10
    assert min(one[2] for one in found) >= 4.5
