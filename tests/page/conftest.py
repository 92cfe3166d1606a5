"""One browser for all tests of the page, and the page of the samples."""

import os

import page_browser
import pytest
from page_samples import page_data

from dive.page.render import write_page


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if reason := page_browser.missing():
        if os.environ.get("DIVE_TEST_BROWSER") == "1":  # .ci/run: there must be one
            pytest.fail(reason)
        pytest.skip(reason)
    with page_browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def sample():
    return page_data()


@pytest.fixture(scope="session")
def page(sample, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, sample)
    return path
