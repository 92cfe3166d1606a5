"""A page of 2,000 studies and 5 methods: its size, and that its list is drawn in part only."""

import json

import pytest
from page_samples import page_data, text_of

from dive.page.render import render, write_page

pytestmark = pytest.mark.browser
STUDIES, METHODS = 2000, 5


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    data = page_data(STUDIES, METHODS, words=60)
    words = [len(text_of(one["reference"]).split()) for one in data["studies"][:200]]
    assert 75 < sum(words) / len(words) < 110
    path = tmp_path_factory.mktemp("large") / "page.html"
    write_page(path, data)
    return path


def test_the_page_is_below_thirty_megabytes(large):
    assert 15e6 < large.stat().st_size < 30e6


def test_the_page_is_little_more_than_its_data():
    data = page_data(3, 2)
    plain = json.dumps(data, separators=(",", ":"))
    assert len(render(data)) < len(plain) * 1.01 + 110_000


def test_the_list_scrolls_through_all_and_holds_few_elements(browser, large):
    browser.open(large, "#view=studies&order=given")
    assert browser.text("#how-many") == "2,000 studies"
    with browser.work() as spent:
        seen, most, steps = browser.driver.execute_async_script("""
            const done = arguments[0], lines = document.querySelector('.lines');
            const seen = new Set(); let most = 0, steps = 0;
            const frame = () => new Promise(requestAnimationFrame);
            (async () => {
              for (let top = 0; top < lines.scrollHeight; top += lines.clientHeight, steps += 1) {
                lines.scrollTop = top;
                await frame();
                await frame();
                for (const one of lines.querySelectorAll('.line')) seen.add(one.dataset.at);
                most = Math.max(most, document.querySelectorAll('*').length);
              }
              done([seen.size, most, steps]);
            })();
        """)
    assert seen == STUDIES and steps > 100
    assert most < 5000
    assert spent[0] / steps < 0.05  # of the processor, with what the test itself does
    assert browser.complaints() == []


def test_search_and_order_take_no_pause_that_one_feels(browser, large):
    browser.open(large, "#view=studies&order=given")
    with browser.work() as spent:
        browser.choose("#order", "worst")
        browser.choose("#order", "difference")
    assert spent[0] < 0.5
    with browser.work() as spent:
        browser.press("/", "patient-0999")
        browser.until("document.querySelector('#how-many').textContent", "2 of 2,000 studies")
    assert spent[0] < 2
