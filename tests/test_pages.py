"""Every HTML page that the package writes, in a real browser: no error, no request, on a phone and a desk."""

import json

import numpy as np
import pytest
from PIL import Image

from puma_trl.evaluation.__main__ import main as evaluate
from puma_trl.pairs.__main__ import main
from puma_trl.pairs.generate.files import write_pairs
from puma_trl.pairs.generate.pairs import generate_pairs
from puma_trl.pairs.preview.command import preview_pairs

from .browser import NEEDS_CHROMIUM
from .evaluation.helpers import make_items, write_rows


pytestmark = NEEDS_CHROMIUM


def write_preview(folder):
    write_pairs(list(generate_pairs(6, seed=0)), folder / "pairs.jsonl", "images")
    preview_pairs([str(folder / "pairs.jsonl")], folder / "preview.html")
    return folder / "preview.html"


def write_build_report(folder):
    Image.new("RGB", (700, 500), "gray").save(folder / "diagram.png")
    rows = [{"question": f"What is {number} + " + "1" * 90 + "?", "answer": "2"} for number in range(4)]
    rows += [
        {"question": "Find the angle in the diagram.", "answer": "60", "image": "diagram.png"},
        {"question": "No"},
    ]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--input", folder / "problems.jsonl", "--output", folder / "out", "--bad_rows", "drop"]
    main(["build", *map(str, options)])
    return folder / "out" / "report.html"


def write_evaluation_report(folder):
    """Of ten items, the last three of which are answered wrong."""
    items, responses = make_items("mathvista"), []
    for number, item in enumerate(items):
        reply = item["answer"] if number < 7 else "wrong " + "word" * 60
        responses.append({"id": item["pid"], "response": f"Answer: {reply}"})
    (folder / "items.json").write_text(json.dumps(items))
    files = ["--data", folder / "items.json", "--responses", write_rows(folder / "responses.jsonl", responses)]
    score = ["score", "--benchmark", "mathvista", *files, "--output", folder / "metrics.json"]
    report = ["report", "--metrics", folder / "metrics.json", "--output", folder / "report.md"]
    for command in (score, report):
        assert evaluate([*map(str, command)]) == 0
    return folder / "report.html"


WRITERS = {
    "preview": write_preview,
    "build report": write_build_report,
    "evaluation report": write_evaluation_report,
}


@pytest.fixture(scope="module", params=WRITERS)
def page(request, tmp_path_factory):
    return WRITERS[request.param](tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize("width", [390, 1280])
def test_page(browser, page, width):
    browser.open(page, width=width, mobile=width == 390)
    browser.run("document.querySelectorAll('details').forEach(each => { each.open = true })")
    images = "[...document.querySelectorAll('img')].filter(image => image.src)"
    assert browser.run(f"Promise.all({images}.map(image => image.decode())).then(() => {images}.length)") > 0
    # the screen is as wide as it is, and nothing stands out of it
    assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert np.asarray(browser.screenshot().convert("L")).std() > 10
    assert browser.run("document.title") and browser.run("document.documentElement.lang") == "en"
