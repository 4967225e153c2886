"""The page beside a build: its counts, reasons and pairs, and that it loads nothing."""

import re

from .test_build import PLAIN, SHOWN, read, run_build, write


def build_page(tmp_path, monkeypatch, rows, *options):
    run_build(monkeypatch, write(tmp_path / "in.jsonl", rows), tmp_path / "out", *options)
    return (tmp_path / "out" / "report.html").read_text()


def test_the_page_has_counts_reasons_and_pairs(tmp_path, monkeypatch):
    rows = [{"question": f"AB is {n} & <b. Find BC.", "answer": str(n)} for n in range(30)]
    rows += [{"question": "What is 3 + 4?", "answer": "7"}, SHOWN, {"question": "What?"}]
    page = build_page(tmp_path, monkeypatch, rows, "--levels", "vision_only", "vision_dominant", "--bad_rows", "drop")
    assert "61 pairs from 33 rows" in page
    assert "vision_dominant: no conditions" in page
    assert "shows source" in page and "in.jsonl:32" in page and "no answer" in page and "in.jsonl:33" in page
    assert page.count('<div class="pair">') == 20 and page.count("data:image/png;base64,") == 20
    assert "AB is 7 &amp; &lt;b." in page or "&amp; &lt;b." in page
    assert not re.search(r"<script|https?://|<link|@import|url\(", page)


def test_the_worst_come_first(tmp_path, monkeypatch):
    long = {"question": "Words " * 200 + "end. What is it?", "answer": "1"}
    page = build_page(tmp_path, monkeypatch, [*PLAIN, long, SHOWN], "--source", "keep")
    worst = page.split("The worst")[1]
    order = [re.search(r"in\.jsonl:\d", part)[0] for part in worst.split('<div class="pair">')[1:]]
    assert order[:2] == ["in.jsonl:4", "in.jsonl:3"] and "shows source" in worst.split('<div class="pair">')[1]


def test_pairs_are_picked_over_all_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("puma_trl.data.files.CHUNK_BYTES", 300)
    rows = [{"question": f"AB is {n}. Find BC.", "answer": str(n)} for n in range(60)]
    page = build_page(tmp_path, monkeypatch, rows)
    chance = page.split("The worst")[0]
    numbers = [int(number) for number in re.findall(r"in\.jsonl:(\d+), vision_only", chance)]
    assert len(numbers) == 10 and max(numbers) > 30 and min(numbers) < 30
    assert len(read(tmp_path / "out" / "train.jsonl")) == 60
