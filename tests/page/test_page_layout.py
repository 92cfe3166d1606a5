"""The page on narrow and wide screens, and on paper."""

import pytest

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("view", ["overview", "studies", "explained"])
@pytest.mark.parametrize("width", [390, 800, 1280, 1920])
def test_nothing_but_tables_scrolls_sideways(browser, page, view, width):
    browser.open(page, f"#view={view}", width=width)
    assert browser.ask("document.documentElement.scrollWidth") <= width


def test_on_a_narrow_screen_the_list_is_a_drawer(browser, page):
    browser.open(page, "#view=studies", width=390, height=844)
    assert not browser.ask("document.querySelector('.lines').checkVisibility()")
    browser.click("#drawer")
    assert browser.ask("document.querySelector('#drawer').getAttribute('aria-expanded')") == "true"
    browser.click(".line:nth-child(3)")
    assert not browser.ask("document.querySelector('.lines').checkVisibility()")
    assert browser.text("#drawer").startswith("Study 3 of 60")
    tops = browser.ask(
        "[...document.querySelectorAll('.column')].map((one) => one.getBoundingClientRect().left)"
    )
    assert len({*tops}) == 1 and len(tops) == 4


def test_a_wide_screen_is_used(browser, page):
    browser.open(page, "#view=studies", width=1920, height=1080)
    boxes = browser.ask(
        "[...document.querySelectorAll('.column')]"
        ".map((one) => one.getBoundingClientRect().toJSON())"
    )
    assert len({one["top"] for one in boxes}) == 1 and len(boxes) == 4
    assert max(one["right"] for one in boxes) > 1880


@pytest.mark.parametrize(
    "view, there", [("overview", "#overview h2"), ("studies", ".truth"), ("explained", ".token")]
)
def test_what_is_looked_at_prints(browser, page, view, there):
    browser.open(page, f"#view={view}&theme=dark")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    try:
        seen = "document.querySelector(arguments[0]).checkVisibility()"
        assert browser.ask(seen, there)
        assert not browser.ask(seen, "#side") and not browser.ask(seen, "#views")
        white = browser.ask("getComputedStyle(document.body).backgroundColor")
        assert white == "rgb(255, 255, 255)"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
