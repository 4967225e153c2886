"""The preview page of pairs: what is on it, that nothing escapes from the data, and what a model adds to it."""

import json
import math
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import pytest
from datasets import Dataset
from PIL import Image

from puma_trl.data.images import open_image
from puma_trl.data.render import render_answer, render_prompt
from puma_trl.errors import DataError
from puma_trl.evaluation.local_model import Reply
from puma_trl.pairs.__main__ import main
from puma_trl.pairs.generate.files import write_pairs
from puma_trl.pairs.generate.pairs import generate_pairs
from puma_trl.pairs.preview.command import preview_pairs
from puma_trl.pairs.preview.measure import split_answer
from puma_trl.pairs.preview.page import IMAGES_PER_BLOCK, describe_size

from ..evaluation.definition import naive_log_probs


HOSTILE = '</script><script>document.title="owned"</script><svg onload="alert(1)"><!-- &lt; \u2028 "\\'


class Page(HTMLParser):
    """What a browser would find in the page: elements, and the data of its JSON blocks."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.data, self.blocks, self._script = [], [], {}, [], None
        self.feed(path.read_text(encoding="utf-8"))
        self.rows = self.data["data-rows"]
        self.facts = self.data["data-facts"]

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.addresses += [attributes[name] for name in ("src", "href", "action") if name in attributes]
        self._script = attributes if tag == "script" else None

    def handle_data(self, data):
        if self._script is None or "type" not in self._script:
            return
        if "id" in self._script:
            self.data[self._script["id"]] = json.loads(data)
        else:
            self.blocks.append(json.loads(data))
        self._script = None

    def picture(self, number):
        data = self.blocks[number // IMAGES_PER_BLOCK][number % IMAGES_PER_BLOCK]
        return Image.open(BytesIO(b64decode(data)))


@pytest.fixture
def pair_file(tmp_path):
    """14 generated pairs of 512 x 384 pixels."""
    write_pairs(generate_pairs(14, seed=0), tmp_path / "pairs.jsonl", "images")
    return tmp_path / "pairs.jsonl"


@pytest.fixture
def model_folder(processor, tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def preview(source, **options):
    output = source.parent / "preview.html"
    return preview_pairs([str(source)], output, **options), Page(output)


def edit(path, changes):
    """Replaces rows of a jsonl file: index → columns to change, or the whole line."""
    lines = path.read_text().splitlines()
    for index, change in changes.items():
        lines[index] = change if isinstance(change, str) else json.dumps(json.loads(lines[index]) | change)
    path.write_text("\n".join(lines) + "\n")


def test_rows_and_pictures_are_on_the_page(pair_file):
    done, page = preview(pair_file, thumbnail_size=200)
    assert done["bytes"] == (pair_file.parent / "preview.html").stat().st_size
    assert (done["pairs"], done["problems"], done["total"]) == (14, 0, 14)
    number, unit = page.facts["page_size"].split()
    assert unit == "kB" and float(number) == pytest.approx(done["bytes"] / 1000, abs=1.5)
    assert page.facts["unit"] == "characters"
    assert page.facts["title"] == "pairs.jsonl"
    for index, (line, row) in enumerate(zip(pair_file.read_text().splitlines(), page.rows, strict=True)):
        source = json.loads(line)
        assert row["id"] == f"pairs.jsonl:{index + 1}" and row["kind"] == source["kind"]
        assert row["more"] == {"level": 1, "answer": source["answer"]}
        text_rich, vision_rich = row["sides"]
        assert (text_rich["prompt"], text_rich["answer"]) == (source["instruction"], source["output"])
        assert (vision_rich["prompt"], vision_rich["answer"]) == (source["instruction_2"], source["output_2"])
        assert text_rich["images"] == [] and "tokens" not in text_rich
        number, width, height = vision_rich["images"][0]
        assert (width, height) == (512, 384)
        expected = open_image(str(pair_file.parent / source["image_url_2"])).resize((200, 150))
        shown = page.picture(number).convert("RGB")
        assert shown.size == (200, 150)
        difference = [abs(a - b) for a, b in zip(shown.tobytes(), expected.tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 4


@pytest.mark.parametrize(("size", "words"), [(1_499, "1 kB"), (999_000, "999 kB"), (45_460_000, "45.5 MB")])
def test_words_of_a_size(size, words):
    assert describe_size(size) == words


def test_page_asks_for_nothing_from_the_network(pair_file):
    _, page = preview(pair_file)
    assert page.addresses == []
    text = (pair_file.parent / "preview.html").read_text()
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text


@pytest.mark.parametrize("column", ["instruction", "output_2", "kind", "note"])
def test_data_cannot_leave_its_block(pair_file, column):
    _, clean = preview(pair_file)
    edit(pair_file, {3: {column: HOSTILE} | ({"output": HOSTILE} if column == "output_2" else {})})
    _, page = preview(pair_file)
    assert page.tags == clean.tags
    row = page.rows[3]
    found = {
        "instruction": row["sides"][0]["prompt"],
        "output_2": row["sides"][1]["answer"],
        "kind": row["kind"],
        "note": row["more"].get("note"),
    }
    assert found[column] == (f"{HOSTILE[:80]}…" if column in ("kind", "note") else HOSTILE)


def test_what_json_and_utf8_cannot_hold_is_still_shown(pair_file):
    edit(pair_file, {0: {"note": "\ud800 lone", "score": math.nan, "rate": 0.5, "nested": [1]}})
    _, page = preview(pair_file)
    assert page.rows[0]["more"] == {"level": 1, "answer": page.rows[0]["more"]["answer"]} | {
        "note": "\ud800 lone",
        "score": "nan",
        "rate": 0.5,
    }


@pytest.mark.parametrize("with_model", [False, True])
def test_broken_rows_are_listed_with_their_reason(pair_file, model_folder, with_model):
    images = pair_file.parent / "images" / "000"
    truncated = images / "0000005.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    edit(
        pair_file,
        {
            0: "{broken </script>" + "x" * 3000,
            1: {"instruction": "  "},
            2: {"output_2": "other"},
            3: {"image_url_2": "nowhere.png"},
            4: {"output": None},
        },
    )
    done, page = preview(pair_file, model=str(model_folder) if with_model else None)
    assert done["problems"] == 6 and len(page.rows) == 14
    reasons = [
        "broken JSON: line 1",
        "empty text: `instruction` is empty",
        "answers differ",
        "missing image",
        "no answer: `output`",
        "unreadable image",
    ]
    for row, reason in zip(page.rows, reasons, strict=False):
        assert row["problem"].startswith(reason)
    assert all("problem" not in row for row in page.rows[6:])
    assert page.rows[0]["raw"].startswith("{broken </script>") and len(page.rows[0]["raw"]) == 2001
    assert page.rows[0]["sides"] == [] and page.rows[4]["sides"] == []
    # what can be shown of a row with a problem is shown
    assert page.rows[2]["sides"][1]["answer"] == "other" and page.rows[2]["sides"][1]["images"]
    assert page.rows[5]["sides"][1]["images"] == [] and "0000005.png" in page.rows[5]["problem"]


def test_tokens_add_up_to_the_length_of_training(pair_file, model_folder, processor):
    _, page = preview(pair_file, model=str(model_folder))
    assert page.facts["unit"] == "tokens"
    for line, row in zip(pair_file.read_text().splitlines(), page.rows, strict=True):
        source = json.loads(line)
        for side, suffix in zip(row["sides"], ("", "_2"), strict=True):
            path = source[f"image_url{suffix}"]
            images = [open_image(str(pair_file.parent / path))] if path else []
            prompt = render_prompt(processor, source[f"instruction{suffix}"], len(images))
            inputs = processor(text=[prompt], images=[images] if images else None, add_special_tokens=False)
            answer = render_answer(processor, source["output_2"])
            assert side["tokens"][0] + side["tokens"][1] == len(inputs["input_ids"][0])
            assert bool(side["tokens"][1]) == bool(images)
            assert side["tokens"][2] == len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("source_kind", ["jsonl", "parquet"])
def test_the_first_rows_of_a_longer_file(pair_file, source_kind):
    if source_kind == "parquet":
        rows = [json.loads(line) for line in pair_file.read_text().splitlines()]
        for row in rows:
            path = row["image_url_2"]
            row["image_url_2"] = {"bytes": (pair_file.parent / path).read_bytes(), "path": path}
        pair_file = pair_file.with_suffix(".parquet")
        Dataset.from_list(rows).to_parquet(pair_file)
    done, page = preview(pair_file, max_pairs=5)
    assert (done["pairs"], done["total"], page.facts["total"], len(page.rows)) == (5, 14, 14, 5)
    assert len(page.blocks[0]) == 5
    assert [row["kind"] for row in page.rows][:2] == ["triangle_angles", "straight_angles"]
    assert page.picture(4).size == (320, 240)


def test_rows_with_one_side_and_pictures_used_twice(pair_file):
    rows = [json.loads(line) for line in pair_file.read_text().splitlines()]
    single = {"image_url": "", "instruction": "What is 1 + 1?", "output": "2"}
    twice = rows[0] | {"image_url": rows[0]["image_url_2"]}
    pair_file.write_text("".join(json.dumps(row) + "\n" for row in (single, twice, rows[0])))
    done, page = preview(pair_file)
    assert done["problems"] == 0
    assert page.rows[0]["sides"][1] is None and "kind" not in page.rows[0]
    assert (
        page.rows[1]["sides"][0]["images"] == page.rows[1]["sides"][1]["images"] == page.rows[2]["sides"][1]["images"]
    )
    assert [len(block) for block in page.blocks] == [1]


def test_pictures_come_in_blocks(pair_file):
    rows = [json.loads(line) for line in pair_file.read_text().splitlines()]
    names = []
    for index in range(IMAGES_PER_BLOCK + 3):
        Image.new("RGB", (20 + index, 30), (index, 0, 0)).save(pair_file.parent / f"{index}.png")
        names.append(rows[0] | {"image_url_2": f"{index}.png"})
    pair_file.write_text("".join(json.dumps(row) + "\n" for row in names))
    _, page = preview(pair_file)
    assert [len(block) for block in page.blocks] == [IMAGES_PER_BLOCK, 3]
    for index in (0, IMAGES_PER_BLOCK - 1, IMAGES_PER_BLOCK, IMAGES_PER_BLOCK + 2):
        number, width, height = page.rows[index]["sides"][1]["images"][0]
        assert (width, height) == (20 + index, 30)
        assert page.picture(number).size == (20 + index, 30)


def test_measures_equal_the_definition(pair_file, model_folder, processor, tiny_model):
    edit(pair_file, {1: {"output": "", "output_2": ""}, 2: {"output": "é ∠ 四", "output_2": "é ∠ 四"}})
    _, page = preview(pair_file, model=str(model_folder), measure=True, max_pairs=4, batch_size=3)
    model = tiny_model().eval()
    assert "measured" not in page.rows[1] and "problem" in page.rows[1]
    for index in (0, 2, 3):
        source, measured = json.loads(pair_file.read_text().splitlines()[index]), page.rows[index]["measured"]
        picture = [open_image(str(pair_file.parent / source["image_url_2"]))]
        answer = source["output_2"]
        teacher, labels = naive_log_probs(model, processor, source["instruction"], [], answer)
        student, _ = naive_log_probs(model, processor, source["instruction_2"], picture, answer)
        assert measured["num_tokens"] == len(labels)
        forward = (teacher.exp() * (teacher - student)).sum() / len(labels)
        reverse = (student.exp() * (student - teacher)).sum() / len(labels)
        assert measured["forward_kl"] == pytest.approx(forward.item(), rel=1e-2, abs=1e-4)
        assert measured["reverse_kl"] == pytest.approx(reverse.item(), rel=1e-2, abs=1e-4)
        assert "".join(text for text, _, _ in measured["tokens"]) == render_answer(processor, answer)
        for side, log_probs in enumerate((teacher, student)):
            losses = -log_probs.gather(1, labels[:, None])[:, 0]
            assert measured["losses"][side] == pytest.approx(losses.mean().item(), abs=1e-3)
            shown = [token[1 + side] for token in measured["tokens"]]
            assert sum(shown) == pytest.approx(losses.sum().item(), abs=1e-2)
            if len(shown) == len(losses):  # no character of several tokens
                assert shown == pytest.approx(losses.tolist(), abs=1e-3)


def test_replies_stand_on_their_side(pair_file, model_folder, monkeypatch):
    from puma_trl.pairs.preview import measure

    class Oracle:
        """Right on the text-rich side, right on every other picture."""

        def __init__(self, model, processor, batch_size, max_new_tokens):
            assert max_new_tokens == 7

        def batches(self, prompts):
            return [list(reversed(range(len(prompts))))]

        def answer(self, prompts):
            return [
                Reply(f"Answer: {gold[position] if not prompt.images or position % 2 else 'none'}", 4, False)
                for position, prompt in reversed(list(enumerate(reversed(prompts))))
            ]

    gold = [json.loads(line)["answer"] for line in pair_file.read_text().splitlines()]
    monkeypatch.setattr(measure, "Generator", Oracle)
    _, page = preview(pair_file, model=str(model_folder), replies=True, max_new_tokens=7)
    for position, row in enumerate(page.rows):
        assert row["sides"][0]["reply"] == f"Answer: {gold[position]}" and row["sides"][0]["right"]
        assert row["sides"][1]["right"] == bool(position % 2)
        assert "measured" not in row


@pytest.mark.parametrize("answer", ["2 + 3 = 5. Answer: 5", "  spaces  kept\n", "∠ABC = 四十五°, naïve 👩‍👩‍👧", "x"])
def test_pieces_of_an_answer_are_the_answer(processor, answer):
    ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    pieces = split_answer(processor.tokenizer, answer, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == answer
    if answer.isascii():
        assert pieces == [processor.tokenizer.decode([token]) for token in ids]
    else:
        assert "" in pieces  # of the tokens of one character only the last has it
    with pytest.raises(ValueError, match="other tokens"):
        split_answer(processor.tokenizer, answer, ids[:-1])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"output": "page.txt"}, "ends with .html"),
        ({"output": "folder.html"}, "is a folder"),
        ({"thumbnail_size": 8}, "16 to 2048"),
        ({"max_pairs": 0}, "at least 1"),
        ({"measure": True}, "Name it with `--model`"),
        ({"model": "no/such/model/here"}, "No model with a processor"),
        ({"model": "no/such/model/here", "measure": True}, "No image-text-to-text model"),
        ({"data": ["nowhere.jsonl"]}, "No such file"),
        ({"data": ["empty.jsonl"]}, "is empty"),
    ],
)
def test_bad_options(pair_file, tmp_path, monkeypatch, options, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    options = {"data": [str(pair_file)]} | options
    output = tmp_path / options.pop("output", "preview.html")
    with pytest.raises(ValueError, match=match):
        preview_pairs(options.pop("data"), output, **options)
    assert not list(tmp_path.glob("*.tmp")) and not (tmp_path / "preview.html").exists()


def test_nothing_to_measure(pair_file, model_folder):
    pair_file.write_text(json.dumps({"image_url": "", "instruction": "1 + 1?", "output": "2"}) + "\n")
    with pytest.raises(ValueError, match="No row is a pair"):
        preview(pair_file, model=str(model_folder), measure=True)


def test_command_line(pair_file, monkeypatch, capsys):
    edit(pair_file, {3: {"image_url_2": "nowhere.png"}})
    output = pair_file.parent / "new" / "page.html"
    arguments = ["pairs", "preview", str(pair_file), "--output", str(output), "--max_pairs", "7"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert len(Page(output).rows) == 7
    printed = capsys.readouterr().out
    assert "7 pairs of 14 rows, 1 of them with a problem" in printed and " kB)" in printed
    monkeypatch.setattr("sys.argv", [*arguments, "--measure"])
    with pytest.raises(DataError, match="^`--measure`"):
        main()


def test_columns_have_other_names(pair_file, monkeypatch):
    rows = [json.loads(line) for line in pair_file.read_text().splitlines()]
    for row in rows:
        row["picture"] = row.pop("image_url_2")
    pair_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = pair_file.parent / "page.html"
    arguments = ["pairs", "preview", str(pair_file), "--output", str(output)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(DataError, match='{"image_url_2": "picture"}'):
        main()
    monkeypatch.setattr("sys.argv", [*arguments, "--columns", '{"image_url_2": "picture"}'])
    main()
    shown = Page(output).rows
    assert len(shown) == 14 and not any("problem" in row for row in shown)
    assert all(row["sides"][1]["images"] for row in shown)
    monkeypatch.setattr("sys.argv", [*arguments, "--columns", "picture"])
    with pytest.raises(DataError, match="^`--columns picture` is not a JSON object"):
        main()
