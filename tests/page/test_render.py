"""The page as text: what is embedded is strict JSON and no HTML, and the policy names what runs."""

import base64
import copy
import hashlib
import json
import re

import pytest
from page_samples import page_data

from dive.errors import DiveError
from dive.page.render import ASSETS, SCRIPTS, embedded, policy, render, write_page

HOSTILE = "</script><script>window.pwned=1</script><!--\u2028\u202e&\ud800\x00\x1b\U0001f600"


@pytest.fixture(scope="module")
def data():
    return page_data(5, 2, explained=1)


def block(html, opening):
    (text,) = re.findall(rf"{re.escape(opening)}(.*?)</(?:script|style)>", html, re.S)
    return text


def test_the_data_comes_back_as_it_was(data):
    data = copy.deepcopy(data)
    data["studies"][0]["id"] = HOSTILE
    data["title"] = HOSTILE
    html = render(data)
    text = block(html, '<script type="application/json" id="data">')
    assert json.loads(text) == data
    assert not set("<>&\u2028\u2029") & set(text) and text.isascii()
    assert html.lower().count("<script") == html.lower().count("</script>") == 2
    assert "<!--" not in html
    assert re.search(r"<title>(.*)</title>", html).group(1).startswith("&lt;/script&gt;")
    html.encode("utf-8")  # no lone surrogate is left


def test_the_policy_has_the_hash_of_each_block_and_nothing_looser(data):
    html = render(data)
    (found,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    found = found.replace("&#39;", "'")
    for directive, opening in (("script-src", "<script>"), ("style-src", "<style>")):
        digest = hashlib.sha256(block(html, opening).encode()).digest()
        assert f"{directive} 'sha256-{base64.b64encode(digest).decode()}';" in found
    assert "default-src 'none'" in found and "base-uri 'none'" in found
    assert "form-action 'none'" in found and "unsafe" not in found and "*" not in found


def test_images_beside_the_page_are_let_in_and_otherwise_embedded_ones_alone(data):
    assert "img-src data:;" in policy("", "", beside=False)
    data = copy.deepcopy(data)
    data["studies"][0]["images"][0]["src"] = "page-images/0.jpg"
    assert "img-src data: &#39;self&#39; file:;" in render(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_has_no_word_for_is_named(data, value):
    data = copy.deepcopy(data)
    data["scores"][1]["bleu4"]["value"] = value
    with pytest.raises(DiveError, match=r"^scores\.1\.bleu4\.value of the page's data is not"):
        embedded(data)


def test_what_json_does_not_hold_is_a_bug_and_no_bad_input(data):
    with pytest.raises(TypeError):
        embedded(data | {"title": {1}})


def test_a_page_is_written_whole(data, tmp_path):
    write_page(tmp_path / "page.html", data)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == render(data)
    with pytest.raises(DiveError, match="is a folder"):
        write_page(tmp_path, data)


def test_every_script_is_used_and_none_makes_html():
    assert {path.name for path in ASSETS.glob("*.js")} == {*SCRIPTS}
    for path in ASSETS.iterdir():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 400, path
        assert not re.search(r"(?:https?:)?//[\w.]+\.\w+/", text.replace("http://www.w3.org/", ""))
        if path.suffix == ".js":
            assert not re.search(
                r"(inner|outer)HTML|insertAdjacent|document\.write|eval\(|Function\(|DOMParser"
                r"|fetch\(|XMLHttp|import\(|</|<!--|\.style\s*=|cssText",
                text,
            ), path


def test_the_template_has_no_attribute_that_the_policy_refuses():
    text = (ASSETS / "page.html.j2").read_text(encoding="utf-8")
    assert not re.search(r"\s(style|on\w+)=|\|\s*safe", text)
