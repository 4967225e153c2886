"""Pairs without answers in `pairs check` and `pairs preview`: as in training with the same `on_policy_share`."""

import json

import pytest
from PIL import Image

from puma_trl.errors import DataError
from puma_trl.pairs.check.command import check_pairs
from puma_trl.pairs.check.scan import MAX_LENGTH
from puma_trl.pairs.preview.command import preview_pairs


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes pairs with these answers, `None` for none; each with a drawing of its own."""

    def write(*answers):
        rows = []
        for index, answer in enumerate(answers):
            picture = Image.new("RGB", (64, 64), "white")
            picture.paste("black", (index, index, 40, 30))
            picture.save(tmp_path / f"{index}.png")
            questions = {"instruction": f"A side has {index} cm. Find the other.", "instruction_2": f"Find {index}."}
            rows.append(questions | {"image_url_2": f"{index}.png"})
            rows[-1] |= {} if answer is None else {"output": answer, "output_2": answer}
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / "pairs.jsonl")

    return write


@pytest.fixture
def model(tmp_path, tiny_model, processor):
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def found(report):
    return {finding.kind: (finding.level, finding.count) for finding in report.findings}


def test_check_knows_the_share(write):
    path = write("7.", None, "", "9.")
    assert found(check_pairs([path], num_proc=1)) == {"no answer": ("error", 2)}
    report = check_pairs([path], on_policy_share=0.5, num_proc=1)
    assert found(report) == {"without answer": ("note", 2)} and report.rows_usable == 4


def test_check_of_no_answer_at_all(write):
    path = write(None, None)
    with pytest.raises(DataError, match="fits no form"):
        check_pairs([path], num_proc=1)
    report = check_pairs([path], on_policy_share=0.5, num_proc=1)
    assert found(report) == {"without answer": ("error", 2)} and report.has_errors
    assert not check_pairs([path], on_policy_share=1, num_proc=1).has_errors


def test_check_leaves_room_for_sampled_answers(write, model):
    path = write("7.", None)
    options = {"model": model, "num_proc": 1, "on_policy_share": 0.5}
    longest = max(check_pairs([path], **options).lengths["text-rich"].max(), 60)
    kinds = found(check_pairs([path], max_length=longest, max_completion_length=longest, **options))
    assert kinds["too long"] == ("error", 2)
    assert "too long" not in found(check_pairs([path], max_length=200, max_completion_length=20, **options))
    for room, count in ((100, 0), (0, 2)):
        kinds = found(check_pairs([path], max_completion_length=MAX_LENGTH - room, **options))
        assert kinds.get("longer than max_length", ("warning", 0)) == ("warning", count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_policy_share": 1.5}, "`--on_policy_share` is 1.5, but must be between 0 and 1"),
        ({"max_completion_length": 9}, "`--max_completion_length 9` is of sampled answers"),
        ({"on_policy_share": 1, "max_completion_length": 0}, "`--max_completion_length` is 0, but must be at least 1"),
    ],
)
def test_options_of_check(options, message, write):
    with pytest.raises(DataError, match=message):
        check_pairs([write("7.")], num_proc=1, **options)


@pytest.mark.parametrize("with_model", [False, True])
def test_preview_shows_them(with_model, write, model, tmp_path):
    path, page = write("7.", None), tmp_path / "page.html"
    options = {"model": model, "measure": True} if with_model else {}
    assert preview_pairs([path], page, **options)["problems"] == 1
    assert preview_pairs([path], page, on_policy_share=0.5, **options)["problems"] == 0
    with pytest.raises(DataError, match="No row is a pair with an answer"):
        preview_pairs([write(None)], page, on_policy_share=1, model=model, measure=True)
