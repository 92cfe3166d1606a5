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
    seen, most, longest = browser.driver.execute_async_script("""
        const done = arguments[0], lines = document.querySelector('.lines');
        const seen = new Set(); let most = 0, longest = 0;
        const frame = () => new Promise(requestAnimationFrame);
        (async () => {
          for (let top = 0; top < lines.scrollHeight; top += lines.clientHeight) {
            lines.scrollTop = top;
            await frame();
            const began = performance.now();
            await frame();
            longest = Math.max(longest, performance.now() - began);
            for (const one of lines.querySelectorAll('.line')) seen.add(one.dataset.at);
            most = Math.max(most, document.querySelectorAll('*').length);
          }
          done([seen.size, most, longest]);
        })();
    """)
    assert seen == STUDIES
    assert most < 5000
    assert longest < 1000  # a frame is some 16 ms; a list drawn whole took seconds
    assert browser.complaints() == []


def test_search_and_order_take_no_pause_that_one_feels(browser, large):
    browser.open(large, "#view=studies&order=given")
    browser.choose("#order", "worst")
    browser.press("/", "patient-0999")
    browser.ask("new Promise((done) => setTimeout(done, 1500))")
    assert browser.text("#how-many") == "2 of 2,000 studies"
    took = browser.ask(
        "((began) => { document.querySelector('#order').value = 'difference';"
        "document.querySelector('#order').dispatchEvent(new Event('change'));"
        "return performance.now() - began })(performance.now())"
    )
    assert took < 1000
