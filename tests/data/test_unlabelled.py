"""Pairs without answers: what `on_policy_share` reads, counts and limits, and what it refuses."""

import pytest

from puma_trl.config import PumaKLConfig
from puma_trl.data.checks import TokenCounter
from puma_trl.data.columns import find_form
from puma_trl.data.images import image_size
from puma_trl.data.render import prompt_of
from puma_trl.data.rows import read_row
from puma_trl.errors import DataError
from puma_trl.models.families.qwen import QWEN_VL
from puma_trl.record.report import describe_report
from puma_trl.train.prepare import prepare_rows

from .samples import PAIR, dropped, pair, write


ANSWERS = ("output", "output_2")
USER = {"role": "user", "content": "a"}
EMPTY = {"role": "assistant", "content": ""}


def without(row, *names):
    return {name: value for name, value in row.items() if name not in (names or ANSWERS)}


def both(**side):
    """The columns of a side, and the same of the other."""
    return side | {f"{name}_2": value for name, value in side.items()}


def read(row, seen=None):
    return read_row(row, None, find_form(seen or row, needs_answer=False))


UNLABELLED = {
    "no column": both(instruction="a"),
    "null": both(instruction="a", output=None),
    "question": both(question="a"),
    "question, null": both(query="a", response=None),
    "prompt": both(prompt="a"),
    "prompt of messages": both(prompt=[USER]),
    "completion, null": both(prompt="a", completion=None),
    "completion, empty": both(prompt=[USER], completion=[]),
    "completion, empty turn": both(prompt=[USER], completion=[EMPTY]),
    "messages": both(messages=[USER]),
    "messages, a question of no weight": both(messages=[USER | {"weight": 0}]),
    "messages, empty turn": both(messages=[USER, EMPTY]),
    "messages, null": both(messages=[USER, EMPTY | {"content": None}]),
    "conversations": both(conversations=[{"from": "human", "value": "a"}]),
}


@pytest.mark.parametrize("name", UNLABELLED)
def test_forms_without_answers(name):
    row = read(UNLABELLED[name])
    assert [row[name] for name in ("instruction", "instruction_2", *ANSWERS)] == ["a", "a", "", ""]
    with pytest.raises(DataError, match="fits no form|no answer: "):
        read_row(UNLABELLED[name], None, find_form(UNLABELLED[name]))


def test_turns_before_a_question_without_an_answer_are_kept():
    turns = [{"role": "system", "content": "s"}, USER, EMPTY | {"content": "b"}, USER | {"content": "c"}]
    row = read({"messages": turns})
    assert row["history"] == turns[:3] and (row["instruction"], row["output"]) == ("c", "")


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([USER, USER], "roles: "),
        ([{"role": "system", "content": "s"}], "no answer: the last turn of `messages` is by the system"),
        ([USER, EMPTY, USER], "empty text: turn 2"),
        ([USER, EMPTY | {"tool_calls": [{"name": "f"}]}], "tool calls: turn 2"),
        ([USER, EMPTY | {"content": "b", "weight": 0}], "not trained on: "),
    ],
)
def test_conversations_are_checked_all_the_same(turns, problem):
    with pytest.raises(DataError, match=problem):
        read({"messages": turns})


def test_answers_of_later_rows_are_read():
    row = read(both(question="a", solution="b"), seen=both(question="a"))
    assert (row["output"], row["output_2"], row["unread"]) == ("b", "b", None)


def test_questions_by_a_mapping():
    places = {"instruction": (("q",),), "instruction_2": (("p",),)}
    row = read_row({"q": "a", "p": "c"}, None, find_form(["q", "p"], places, needs_answer=False))
    assert [row[name] for name in ("instruction", "instruction_2", *ANSWERS)] == ["a", "c", "", ""]


@pytest.mark.parametrize("name", ["answer", "final_answer", "gold_response"])
def test_answers_under_another_name_are_not_left_out(name):
    columns = [*without(PAIR), name]
    with pytest.raises(DataError, match=rf"fits no form.* To train without answers: `columns: {{{name}: ignore}}`\.$"):
        find_form(columns, needs_answer=False)
    assert not find_form(columns, ignored=[name], needs_answer=False).needs_answer
    form = find_form(["instruction", "output", "instruction_2", f"{name}_2"], needs_answer=False)
    assert form.suspects["instruction_2"] == "needs `output_2` beside it"


def test_data_without_answers_names_the_share(folder, load):
    path = write(folder / "pairs.jsonl", [without(pair(0))])
    with pytest.raises(DataError, match=r"fits no form of rows.*`on_policy_share: 1` trains on pairs without answers"):
        load(path)
    with pytest.raises(DataError, match=r"fits no form of rows.*with `columns: .*}`\.$"):
        load(write(folder / "text.jsonl", [{"question": "a"}]), use_kl=False)
    path = write(folder / "pairs.jsonl", [pair(0), pair(1, output=None), pair(2, output="", output_2="")])
    with pytest.raises(
        DataError, match=r"2 no answer.*Repair them. In training, `on_policy_share` above 0 needs none"
    ):
        load(path)


@pytest.mark.parametrize("share", [0.5, 1])
def test_rows_without_answers_are_read_and_counted(share, folder, load):
    rows = [pair(0), without(pair(1)), pair(2, output=None, output_2="\u200b"), pair(3, output=" ", output_2=None)]
    dataset, reports = load(write(folder / "pairs.jsonl", rows), on_policy_share=share)
    train, report = dataset["train"], reports["train"]
    assert train["output"] == train["output_2"] == ["It is 0.", "", "", ""]
    assert report.rows_without_answer == 3 and report.answer_tokens == train["num_answer_tokens"][0] > 0
    assert train["num_answer_tokens"][1:] == [0, 0, 0]
    where = ", trained on in on-policy micro-batches only" if share < 1 else "; no answer of the data is trained on"
    assert dict(describe_report(report, True, share))["Without answer"] == f"3{where}"
    lengths = [row["length"] for row in train]
    alone = load(write(folder / "one.jsonl", [pair(1)]))[0]["train"][0]
    assert lengths[1] == alone["length"] - 2 * alone["num_answer_tokens"]


def test_the_table_has_no_line_where_all_rows_have_answers(folder, load):
    _, reports = load(write(folder / "pairs.jsonl", [pair(0)]), on_policy_share=0.5)
    assert "Without answer" not in dict(describe_report(reports["train"], True, 0.5))


def test_no_answer_at_all_needs_the_share_one(folder, load):
    path = write(folder / "pairs.jsonl", [without(pair(index)) for index in range(3)])
    with pytest.raises(DataError, match=r"No row of the train data has an answer, but .*0\.9.* `on_policy_share: 1`"):
        load(path, on_policy_share=0.9)
    assert len(load(path, on_policy_share=1)[0]["train"]) == 3
    more = write(folder / "more.jsonl", [pair(3)])
    assert load(path, more, on_policy_share=0.9)[1]["train"].rows_without_answer == 3


class TestOneAnswer:
    """Of two sides, one has an answer."""

    def test_the_students_counts_where_it_is_asked_for(self, folder, load):
        rows = [pair(0), pair(1, output=""), without(pair(2), "output_2")]
        path = write(folder / "pairs.jsonl", rows)
        with pytest.raises(DataError, match="2 answers differ.*:2: .*`output` is empty, `output_2` is") as error:
            load(path, on_policy_share=0.5)
        assert "; pairs.jsonl:3: answers differ: `output` is 'It is 2.', `output_2` is empty. " in str(error.value)
        assert "With `student`, a pair without an answer on its vision-rich side counts" in str(error.value)
        dataset, reports = load(path, on_policy_share=0.5, answer_mismatch="student")
        assert dataset["train"]["output"] == dataset["train"]["output_2"] == ["It is 0.", "It is 1.", ""]
        assert reports["train"].rows_without_answer == 1
        dataset, reports = load(path, on_policy_share=0.5, answer_mismatch="drop")
        assert reports["train"].dropped == {"answers differ": 2} and len(dataset["train"]) == 1
        assert [row["row_id"] for row in dropped(folder)] == ["pairs.jsonl:2", "pairs.jsonl:3"]

    def test_it_does_not_matter_where_none_is_trained_on(self, folder, load):
        rows = [pair(1, output=""), without(pair(2), "output_2")]
        dataset, reports = load(write(folder / "pairs.jsonl", rows), on_policy_share=1)
        assert dataset["train"]["output"] == dataset["train"]["output_2"] == ["It is 1.", ""]
        with pytest.raises(DataError, match="answers differ"):
            load(write(folder / "other.jsonl", [pair(1, output="It is 2.")]), on_policy_share=1)


def prompt_lengths(rows, processor):
    """Tokens of the prompts of each row, on both sides."""
    counter, found = TokenCounter(processor, QWEN_VL), []
    for row in rows:
        texts = counter.renderer.prompts([prompt_of(row, side) for side in ("", "_2")])
        images = [
            sum(counter.count_image(image_size(image, False)) for image in row[f"image_url{side}"])
            for side in ("", "_2")
        ]
        found.append([sum(pair) for pair in zip(counter.count_texts(texts), images, strict=True)])
    return found


class TestLength:
    """`max_length` holds the prompt of each side, and the longest answer that may stand behind it."""

    @pytest.mark.parametrize("share", [0.5, 1])
    def test_there_is_room_for_the_longest_sampled_answer(self, share, folder, load, processor):
        path = write(folder / "pairs.jsonl", [without(pair(0)), pair(1, output="7", output_2="7")])
        lengths = prompt_lengths(load(path, on_policy_share=share)[0]["train"], processor)
        longest = max(prompt for row in lengths for prompt in row)
        fields = {"on_policy_share": share, "max_completion_length": 50}
        assert load(path, max_length=longest + 50, **fields)[1]["train"].rows_kept == 2
        with pytest.raises(DataError, match="too long: the .* with `max_completion_length: 50`, more than") as error:
            load(path, max_length=longest + 49, **fields)
        assert "A smaller `max_completion_length` leaves more room for prompts." in str(error.value)
        assert f" has {longest + 50} tokens" in str(error.value)

    def test_longer_given_answers_count_where_they_are_trained_on(self, folder, load):
        path = write(folder / "pairs.jsonl", [pair(0, output="7" * 300, output_2="7" * 300)])
        fields = {"max_length": 200, "max_completion_length": 9}
        with pytest.raises(DataError, match=r"too long: the text-rich side has \d+ tokens, more than `max_len"):
            load(path, on_policy_share=0.5, **fields)
        assert load(path, on_policy_share=1, **fields)[1]["train"].rows_kept == 1


class TestEvaluation:
    """The loss is measured on given answers."""

    def test_it_needs_answers(self, folder, load):
        train = write(folder / "pairs.jsonl", [without(pair(0))])
        for number, row in enumerate((without(pair(1)), pair(1, output="", output_2=""), pair(1, output=None))):
            path = write(folder / f"eval{number}.jsonl", [pair(2), row])
            with pytest.raises(DataError, match=r"1 of 2 rows of the eval .*no answer.*Rows to evaluate on need"):
                load(train, eval_dataset_name=path, on_policy_share=1)
        chat = write(folder / "chat.jsonl", [both(messages=[USER]) | {"images_2": ["0.png"]}])
        with pytest.raises(DataError, match="no answer: the last turn of `messages` is by the user"):
            load(train, eval_dataset_name=chat, on_policy_share=1)
        fields = {"on_policy_share": 1, "max_length": 60, "max_completion_length": 20}
        rows = [pair(1, output_2="7" * 10, output="7" * 10)]
        dataset, _ = load(train, eval_dataset_name=write(folder / "eval.jsonl", rows), **fields)
        assert dataset["eval"]["num_answer_tokens"][0] > 0

    def test_rows_to_hold_out_need_answers(self, folder, load):
        path = write(folder / "pairs.jsonl", [pair(0), pair(1), without(pair(2))])
        with pytest.raises(DataError, match="`eval_split_size: 1` holds out .* 1 of 3 rows .* have none"):
            load(path, eval_split_size=1, on_policy_share=0.5)
        path = write(folder / "pairs.jsonl", [pair(0), pair(1)])
        assert len(load(path, eval_split_size=1, on_policy_share=0.5)[0]["eval"]) == 1

    def test_prompts_that_are_trained_on_are_told(self, folder, load, caplog):
        train = write(folder / "pairs.jsonl", [without(pair(0)), without(pair(1))])
        evaluation = write(folder / "eval.jsonl", [pair(0), pair(2)])
        load(train, eval_dataset_name=evaluation, on_policy_share=1)
        assert "1 of the 2 rows of the eval data are among the train data too" in caplog.text
        with pytest.raises(DataError, match="All 1 rows of the eval data are among the train data"):
            load(train, eval_dataset_name=write(folder / "one.jsonl", [pair(1)]), on_policy_share=1)

    def test_other_answers_to_a_problem_repeat_nothing(self, folder, load, caplog):
        rows = [pair(0), pair(0, output="It is zero.", output_2="It is zero."), without(pair(0)), without(pair(0))]
        load(write(folder / "pairs.jsonl", rows), on_policy_share=0.5)
        assert "1 of the 4 rows of the train data repeat another one" in caplog.text


def test_the_cache_knows_what_rows_need(folder, load):
    """The same file under other shares, which read other rows and limit other lengths."""
    path = write(folder / "pairs.jsonl", [pair(0), pair(1, output="", output_2="")])
    fields = {"bad_rows": "drop"}
    for share, kept in ((0, 1), (0.5, 2), (0, 1), (1, 2)):
        assert load(path, on_policy_share=share, **fields)[1]["train"].rows_kept == kept
    fields |= {"max_length": 200, "on_policy_share": 1}
    for longest, kept in ((20, True), (199, False), (20, True)):
        if kept:
            assert load(path, max_completion_length=longest, **fields)[1]["train"].rows_kept == 2
        else:
            with pytest.raises(DataError, match="2 too long"):
                load(path, max_completion_length=longest, **fields)


def test_checked_rows_without_answers_need_the_share(folder, load, processor, tiny_model):
    dataset, _ = load(write(folder / "pairs.jsonl", [pair(0), without(pair(1))]), on_policy_share=0.5)
    config = tiny_model().config
    args = {"output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "report_to": []}
    splits = {"train": dataset["train"]}
    assert prepare_rows(splits, PumaKLConfig(**args, on_policy_share=0.5), processor, config) == splits
    with pytest.raises(DataError, match="1 of 2 rows of the train data have no answer. In training, `on_policy_sh"):
        prepare_rows(splits, PumaKLConfig(**args), processor, config)
    with pytest.raises(DataError, match="1 of 2 rows of the eval data have no answer. Rows to evaluate on need"):
        prepare_rows(splits | {"eval": splits["train"]}, PumaKLConfig(**args, on_policy_share=0.5), processor, config)
