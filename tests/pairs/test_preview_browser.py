"""The preview page in a real headless Chromium."""

import re

import numpy as np
import pytest
import torch

from puma_trl.pairs.generate.files import write_pairs
from puma_trl.pairs.generate.pairs import generate_pairs
from puma_trl.pairs.preview import measure
from puma_trl.pairs.preview.command import preview_pairs

from ..browser import NEEDS_CHROMIUM


pytestmark = NEEDS_CHROMIUM

NUM_PAIRS = 70
# not an <img>, which is refused as a picture inside a text
HOSTILE = '</script><script>window.owned = 1</script><video src=x onerror="owned = 1">'


@pytest.fixture(scope="module")
def rows():
    rows = list(generate_pairs(NUM_PAIRS, seed=0))
    rows[4]["instruction"] += HOSTILE
    rows[5]["kind"] = HOSTILE
    rows[6]["output_2"] = "other"
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("page")
    write_pairs([dict(row) for row in rows], folder / "pairs.jsonl", "images")
    preview_pairs([str(folder / "pairs.jsonl")], folder / "preview.html")
    return folder / "preview.html"


def names(*indices):
    return [f"pairs.jsonl:{index + 1}" for index in indices]


def test_page_opens(browser, page):
    browser.open(page)
    assert browser.count() == f"{NUM_PAIRS} of {NUM_PAIRS} pairs, page 1 of 4"
    assert browser.titles() == names(*range(20))
    assert browser.run("document.title") == "pairs.jsonl"
    # only the pictures of this page are decoded, and all of them show
    assert browser.run("document.querySelectorAll('article').length") == 20
    browser.run("Promise.all([...document.querySelectorAll('article img')].map(image => image.decode()))")
    assert browser.run("[...document.querySelectorAll('article img')].map(image => image.naturalWidth)") == [320] * 20


def test_data_shows_as_text(browser, page, rows):
    browser.open(page)
    assert browser.run("window.owned") is None
    assert browser.run("document.querySelectorAll('article .text')[16].textContent") == rows[4]["instruction"]
    browser.open(page, kind=HOSTILE)
    assert browser.titles() == names(5)
    assert browser.run("document.querySelector('.tag').textContent") == HOSTILE
    assert browser.run("window.owned") is None


def test_filter_by_kind_length_and_problem(browser, page, rows):
    browser.open(page)
    browser.type("kind", "bar_total")
    expected = [index for index, row in enumerate(rows) if row["kind"] == "bar_total"]
    assert browser.titles() == names(*expected)
    assert browser.count() == f"{len(expected)} of {NUM_PAIRS} pairs, page 1 of 1"
    assert "kind=bar_total" in browser.run("location.hash")
    browser.run("document.getElementById('reset').click()")
    browser.wait(f"document.getElementById('count').textContent.startsWith('{NUM_PAIRS} of')")
    lengths = [max(len(row[f"instruction{side}"]) + len(row[f"output{side}"]) for side in ("", "_2")) for row in rows]
    browser.type("min", "110")
    browser.type("max", "125")
    matching = [index for index, length in enumerate(lengths) if 110 <= length <= 125]
    assert 0 < len(matching) < NUM_PAIRS
    assert browser.titles() == names(*matching[:20])
    browser.open(page, sort="long")
    assert browser.titles() == names(*sorted(range(NUM_PAIRS), key=lambda index: -lengths[index])[:20])
    browser.run("document.querySelector('.notice a').click()")
    browser.wait("document.querySelectorAll('article').length === 1")
    assert browser.titles() == names(6)
    assert browser.run("document.querySelector('.problem').textContent").startswith("Not usable: answers differ")


def test_search(browser, page, rows):
    browser.open(page)
    browser.type("search", "DEGREES  triangle")
    texts = [
        " ".join(row[name] for name in ("kind", "instruction", "output", "instruction_2", "output_2")).lower()
        for row in rows
    ]
    expected = [index for index, text in enumerate(texts) if "degrees" in text and "triangle" in text]
    browser.wait(f"document.getElementById('count').textContent.startsWith('{len(expected)} of')")
    assert expected and browser.titles() == names(*expected)
    assert {
        text.lower() for text in browser.run("[...document.querySelectorAll('mark')].map(one => one.textContent)")
    } == {
        "degrees",
        "triangle",
    }
    browser.type("search", "no such words")
    browser.wait("document.getElementById('count').textContent.startsWith('0 of')")
    assert "No pair matches" in browser.run("document.getElementById('list').textContent")


def test_paging_by_keys(browser, page):
    browser.open(page)
    for key, focused in (("j", 0), ("j", 1), ("k", 0), ("k", 0)):
        browser.press(key)
        assert browser.focused() == f"pairs.jsonl:{focused + 1}"
    browser.press("ArrowRight")
    assert browser.titles() == names(*range(20, 40)) and browser.focused() == "pairs.jsonl:21"
    assert browser.run("location.hash") == "#page=2"
    browser.press("k")
    assert browser.titles() == names(*range(20)) and browser.focused() == "pairs.jsonl:20"
    browser.press("j")
    assert browser.focused() == "pairs.jsonl:21"
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert browser.titles() == names(*range(20))
    browser.press("/")
    assert browser.run("document.activeElement.id") == "search"
    browser.press("j")  # a letter, not a command
    assert browser.run("document.activeElement.id") == "search"
    browser.press("Escape")
    assert browser.run("document.activeElement === document.body")


def test_buttons_and_page_number(browser, page):
    browser.open(page)
    assert browser.run("document.getElementById('previous').disabled")
    browser.run("document.getElementById('next').click()")
    assert browser.titles() == names(*range(20, 40))
    for number, expected in (("4", range(60, 70)), ("99", range(60, 70)), ("-3", range(20))):
        browser.run(
            f"(() => {{ const field = document.getElementById('page'); field.value = '{number}';"
            "field.dispatchEvent(new Event('change')); })()"
        )
        assert browser.titles() == names(*expected)


def test_deep_links(browser, page, rows):
    bars = [index for index, row in enumerate(rows) if "chart" in row["instruction"]]
    browser.open(page, search="chart", page=1)
    assert browser.titles() == names(*bars[:20])
    browser.open(page, page=3)
    assert browser.titles() == names(*range(40, 60))
    browser.open(page, pair="pairs.jsonl:48")
    assert browser.focused() == "pairs.jsonl:48" and browser.titles() == names(*range(40, 60))
    browser.open(page, pair="gone", kind="no such kind", page="x", nonsense="1")
    assert browser.titles() == names(*range(20))


def test_picture_opens_large_and_closes(browser, page):
    browser.open(page)
    browser.run("document.querySelector('.picture').click()")
    assert browser.run("document.getElementById('viewer').open")
    assert browser.run("document.getElementById('viewer-title').textContent").endswith(
        "pairs.jsonl:1, 512 × 384 pixels"
    )
    browser.press("ArrowRight")
    assert browser.titles() == names(*range(20))
    browser.run("document.getElementById('close').click()")
    assert not browser.run("document.getElementById('viewer').open")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_screen_is_readable(browser, page, width, dark):
    browser.open(page, width=width, dark=dark, pair="pairs.jsonl:10")
    browser.run("Promise.all([...document.querySelectorAll('article img')].map(image => image.decode()))")
    assert browser.run("document.documentElement.scrollWidth") <= width
    picture = browser.screenshot()
    assert picture.size == (width, 900)
    levels = np.asarray(picture.convert("L"))
    assert levels.std() > 15
    assert (np.median(levels) < 60) == dark
    # the two sides stand beside each other where there is room, else below each other
    left, right = browser.run(
        "[...document.querySelectorAll('.side')].slice(0, 2).map(one => one.getBoundingClientRect().x)"
    )
    assert (right - left > width / 3) == (width == 1280)


def test_every_control_has_a_name(browser, page):
    browser.open(page)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = (
        "button",
        "textbox",
        "searchbox",
        "combobox",
        "spinbutton",
        "checkbox",
        "link",
        "image",
        "article",
        "region",
    )
    controls = [node for node in nodes if node["role"]["value"] in roles and not node["ignored"]]
    assert len(controls) > 50
    assert [node["role"]["value"] for node in controls if not node["name"]["value"].strip()] == []
    assert any(node["role"]["value"] == "status" for node in nodes)


def test_measures(browser, tmp_path, rows, processor, tiny_model, monkeypatch):
    # an untrained model has much the same loss everywhere
    monkeypatch.setattr(measure, "cross_entropy", lambda logits, labels, reduction: torch.linspace(0, 5, len(labels)))
    write_pairs([dict(row) for row in rows[:6]], tmp_path / "pairs.jsonl", "images")
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    page = tmp_path / "preview.html"
    options = {"model": str(tmp_path / "model"), "measure": True, "replies": True, "max_new_tokens": 3}
    preview_pairs([str(tmp_path / "pairs.jsonl")], page, **options)
    browser.open(page)
    assert browser.run("[...document.querySelectorAll('.answer')].map(one => one.textContent)") == [
        row[column] + "<|im_end|>" for row in rows[:6] for column in ("output", "output_2")
    ]
    means = browser.run("document.getElementById('means').textContent")
    assert re.search(r"forward KL \d+\.\d{3}, reverse KL \d", means) and "Replies right: text-rich 0.0 %" in means
    colours = "[...document.querySelector('.answer').children].map(one => getComputedStyle(one).backgroundColor)"
    opacities = [float(re.search(r"/ ([\d.]+)\)", colour)[1]) for colour in browser.run(colours)]
    count = len(opacities)
    expected = [0.85 * min(1, 5 * position / (count - 1) / 4) for position in range(count)]
    assert count > 10 and opacities == pytest.approx(expected, abs=0.01)
    assert browser.run("document.querySelectorAll('.token')[1].title").startswith(f"loss {5 / (count - 1):.3f} nats")
    browser.open(page, sort="forward")
    values = browser.run("[...document.querySelectorAll('.push b:first-of-type')].map(one => Number(one.textContent))")
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    browser.open(page, replies="11")
    assert browser.count().startswith("0 of 6")
    browser.open(page, replies="00")
    assert browser.count().startswith("6 of 6")


def test_an_empty_reply_counts_as_one(browser, tmp_path, rows, processor, tiny_model, monkeypatch):
    replies = [[("", False), ("Answer: 1", True)], [("Answer: 1", True), ("", False)], [("", False), ("", False)]]
    monkeypatch.setattr(measure.LoadedModel, "reply", lambda *_: replies)
    write_pairs([dict(row) for row in rows[:3]], tmp_path / "pairs.jsonl", "images")
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    page = tmp_path / "preview.html"
    preview_pairs([str(tmp_path / "pairs.jsonl")], page, model=str(tmp_path / "model"), replies=True)
    browser.open(page)
    means = browser.run("document.getElementById('means').textContent")
    assert "Replies right: text-rich 33.3 %, vision-rich 33.3 %." in means
    for index, (choice, right) in enumerate({"01": 1, "10": 1, "00": 0}.items()):
        browser.open(page, replies=choice)
        assert browser.titles() == names(index)
        assert browser.run("document.querySelectorAll('span.right').length") == right
    assert browser.run("document.getElementById('list').textContent.match(/\\(empty\\)/g).length") == 2
