"""Columns that are refused although no form reads them, by names and contents, and those that are only listed."""

import json

import pytest

from puma_trl.data.marks import is_mark, marks_wrong
from puma_trl.data.rows import read_row
from puma_trl.errors import DataError

from .samples import ONE, PAIR, texts


QUESTION = {"question": "Which holds?", "answer": "B"}
BESIDE = (
    "support article body story stem scenario given evidence candidates endings ctx passage_text reading_passage "
    "question_context background_information answer_choices multiple_choice_options distractors distractor1 "
    "problem_statement setup mc_options 选项 候选答案选项 题干 上下文 контекст contexte Kontext contexto choix "
    "opciones варианты 材料 背景 보기 文脈"
).split()
PICTURES = (
    "chart graph plot scan thumbnail visual attachment svg tikz_code pdf_path pixel_values image_1 diagramUrl "
    "画像 изображение изображения bild imagen imagem immagine 이미지 题目图片 illustration media"
).split()
SYSTEMS = ("sys", "sys_prompt", "system_message", "persona", "systemInstruction", "SYS")


@pytest.mark.parametrize("name", [*BESIDE, *PICTURES])
def test_names_of_what_belongs_to_the_question(name, find):
    with pytest.raises(DataError, match=f"`{name}` (may belong|has the name of pictures|looks like `image)"):
        find([QUESTION | {name: "something"}])


@pytest.mark.parametrize("name", SYSTEMS)
def test_names_of_system_prompts(name, find):
    with pytest.raises(DataError, match=f"`{name}` may be the system prompt .*{{system: {name}}}`"):
        find([QUESTION | {name: "Be brief."}])
    with pytest.raises(DataError, match=f"{{system: {name}, system_2: {name}}}`"):
        find([PAIR | {name: "Be brief."}])
    (source,) = find([PAIR | {name: "Be brief."}], columns={"system": name, "system_2": name})
    assert texts(source) == [["a", "b", "c", "b"]]


def test_what_would_change_the_template(find):
    """TRL reads it from each row; here one template holds for all."""
    row = {"prompt": "a", "completion": "b"}
    name = "chat_template_kwargs"
    with pytest.raises(DataError, match=f"`{name}` would change .*`chat_template_path`.*Leave it out with"):
        find([row | {name: {"enable_thinking": False}}])
    for columns, value in (({}, None), ({}, {}), ({name: "ignore"}, {"enable_thinking": False})):
        (source,) = find([row | {name: value}], columns=columns)
        assert texts(source)[0][:2] == ["a", "b"]


@pytest.mark.parametrize(
    "names", ["opa opb opc opd", "op1 op2 op3", "A B C D", "a b c", "choice_a choice_b", "ans0 ans1"]
)
def test_choices_in_columns_of_their_own(names, find):
    with pytest.raises(DataError) as error:
        find([QUESTION | dict.fromkeys(names.split(), "1")])
    for name in names.split():
        assert f"`{name}` may belong to the question" in str(error.value)
    assert "Write it into the question, or leave it out" in str(error.value)


def test_of_several_choices_none_is_named_as_the_rest_of_the_question(find):
    row = QUESTION | {"distractor1": "x", "distractor2": "y", "support": "It flows."}
    with pytest.raises(DataError, match="Say what it is with `columns: {input: support}`"):
        find([row])
    with pytest.raises(DataError, match="Write it into the question"):
        find([{name: value for name, value in row.items() if name != "support"}])


def test_pictures_in_columns_that_go_on_by_letters(find):
    row = {"figure_a": "/a.png", "figure_b": "/b.png"}
    with pytest.raises(DataError, match="`figure_a` has the name of pictures .*{image_url: .figure_a, figure_b.}`"):
        find([QUESTION | row])


LISTED = (
    "id source split difficulty url question_type chart_type graph_id image_topic support_level evidence_count "
    "level_1 level_2 tag1 tag2 model_a model_b correct_option answer_index given_name body_part document_url class "
    "classes image_classes status bias tense systems_id op case text description explanation lecture knowledge_point "
    "grade"
).split()


def test_what_is_listed_alone(find):
    (source,) = find([QUESTION | dict.fromkeys(LISTED, "something")])
    assert source.form.unread == LISTED


@pytest.mark.parametrize("reply", ["chosen", "rejected", "rejected_answer", "chosen_response"])
def test_answers_beside_the_one_that_is_read(reply, find):
    with pytest.raises(DataError, match=f"`{reply}` may be the answer, or one to avoid"):
        find([QUESTION | {reply: "C"}])
    (source,) = find([{"question": "a", "chosen": "b", "rejected": "c"}], columns={"output": "chosen"})
    assert texts(source) == [["a", "b", None, None]]


@pytest.mark.parametrize(
    "value",
    [
        json.dumps({"path": "train/a.png"}),
        json.dumps([{"bytes": "iVBORw0KGgo" + "A" * 500}]),
        json.dumps({"x": {"url": "https://host/a.jpg?w=7"}}, indent=1),
        json.dumps({"row": json.dumps({"image": "a.webp"})}),
        json.dumps({"a": "data:image/png;base64,AAAA"}),
        "['a.png', 'b.png']",
    ],
)
def test_pictures_in_texts_of_json(value, find):
    with pytest.raises(DataError, match="`extra` holds a picture"):
        find([QUESTION | {"extra": value}])


@pytest.mark.parametrize(
    "value", ['{"note": "see a.png for more"}', '["png", "jpeg"]', "[x] a.png\nb", "{}", '{"n": 7}']
)
def test_texts_of_json_without_pictures(value, find):
    (source,) = find([QUESTION | {"extra": value}])
    assert source.form.unread == ["extra"]


TURNS = [
    {"role": "user", "content": "Which of these is prime?"},
    {"role": "assistant", "content": "7, as 4 is 2 · 2."},
]
LISTED_CHOICES = "Which of these is prime?\nA. 4\nB. 7"


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ({"messages": TURNS}, {"prompt": "Which of these is prime?"}),
        ({"messages": TURNS}, {"chosen": TURNS, "question": "Which of these  is prime?\n"}),
        ({"question": LISTED_CHOICES, "answer": "B"}, {"choices": ["4", "7"], "options": {"A": 4, "B": 7}}),
        ({"question": LISTED_CHOICES, "answer": "B"}, {"A": "4", "B": "7"}),
        ({"question": f"{LISTED_CHOICES * 3} Think.", "answer": "B"}, {"context": LISTED_CHOICES}),
        ({"messages": TURNS}, {"turn": 1, "system_message": False, "sys": 7}),
    ],
)
def test_what_stands_in_the_texts_anyway_is_listed_alone(row, more, find):
    (source,) = find([row | more] * 2)
    assert source.form.unread == list(more) and len(texts(source)) == 2


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ({"messages": TURNS}, {"prompt": "Which of these is odd?"}),
        ({"messages": TURNS}, {"prompt": "prime"}),
        ({"messages": TURNS}, {"chosen": [*TURNS[:1], {"role": "assistant", "content": "4"}]}),
        ({"question": LISTED_CHOICES, "answer": "B"}, {"choices": ["4", "7", "9"]}),
        ({"question": LISTED_CHOICES, "answer": "B"}, {"choices": ["7", "4"]}),
        ({"question": "Of 4 and 7 apples, how many are left?", "answer": "B"}, {"choices": ["4", "7"]}),
        ({"question": "Of 4 and 7 apples, how many are left?", "answer": "B"}, {"A": "4", "B": "7"}),
        ({"question": "Take 4 apples.", "answer": "4"}, {"hint": "4 apples"}),
        ({"question": "What is in a.png, of all the pictures?", "answer": "4"}, {"image_link": "a.png"}),
        ({"question": "What happens?", "answer": "4"}, {"mc1_targets": {"choices": ["4", "7"], "labels": [1, 0]}}),
    ],
)
def test_what_stands_in_the_texts_by_chance_is_refused(row, more, find):
    with pytest.raises(DataError, match="are not read, but look as if they should be"):
        find([row | more])
    if "A" not in more:  # of a single row, letters tell nothing
        (source,) = find([row] * 100 + [row | more])
        with pytest.raises(DataError, match="unread column"):
            texts(source)


@pytest.mark.parametrize("value", ["train/a.png", "a.png", ["a.png"], {"path": "train/a.png"}])
def test_other_names_of_pictures_that_are_read(value, find):
    row = {"question": "a", "answer": "b", "image": "/d/train/a.png"}
    (source,) = find([row | {"image_path": value, "file_name": value}])
    assert texts(source) == [["a", "b", None, None, "/d/train/a.png"]]
    assert source.form.unread == ["image_path", "file_name"]
    with pytest.raises(DataError, match="`picture` has the name of pictures"):  # of which side?
        find([PAIR | {"image_url": "/d/train/a.png", "picture": "train/a.png"}])
    for other in ("test/a.png", "xa.png", ["a.png", "b.png"]):
        with pytest.raises(DataError, match="`file_name` holds a picture"):
            find([row | {"file_name": other}])


def test_parts_of_a_column_are_looked_at_too(find):
    columns = {"instruction": "data.question", "output": "data.answers.0"}
    row = {"data": {"question": "a", "answers": ["b", "c"], "unit": "m", "more": {"image": "/a.png"}}}
    with pytest.raises(DataError, match="`data.more` holds a picture .*{image_url: data.more.image}") as error:
        find([row], columns=columns)
    assert "{data.more: ignore}" in str(error.value)
    (source,) = find([row], columns=columns | {"image_url": "data.more.image"})
    assert texts(source) == [["a", "b", None, None, "/a.png"]]
    (source,) = find([row], columns=columns | {"data.more": "ignore"})
    assert texts(source) == [["a", "b", None, None]]
    row["data"].pop("more")
    with pytest.raises(DataError, match="`data.choices` may belong to the question"):
        find([{"data": row["data"] | {"choices": ["b", "c"]}}], columns=columns)
    (source,) = find([row], columns=columns)
    assert read_row(row, None, source.form)["unread"] == ["data.answers.…", "data.unit"]
    with pytest.raises(DataError, match="unread column: `data.chart` is not read"):
        read_row({"data": row["data"] | {"chart": "x"}}, None, source.form)


PASSAGE = "The river rises in the hills and reaches the sea after a long way through the plains. " * 3


@pytest.mark.parametrize(
    ("question", "name", "value"),
    [
        ("Which of the following is prime?", "alts", ["4", "7", "9"]),
        ("Which one of these is right?", "cands", {"A": "4", "B": "7"}),
        ("Choose the correct option.", "list_of_things", {"text": ["4", "7"], "label": ["A", "B"]}),
        ("下列哪个是质数？", "xx", ["4", "7"]),
        ("Which of these is prime?", "lines", "A. 4\nB. 7"),
        ("According to the passage, where does the river end?", "source_text", PASSAGE),
        ("What does the author say of rivers?", "long_field", [PASSAGE]),
        ("根据材料，河流流向哪里？", "cailiao", PASSAGE),
        ("Answer with a letter.", "mcq", ["3", "4"]),
        ("Translate the following sentence to French:", "en", "Good day to you"),
        ("What does this code print?", "snippets", "x = 1\nprint(x + 2)"),
        ("Is the claim supported?", "claimed", "The earth is round and turns."),
        ("Simplify the given expression.", "formula", "$3 x + 2 x$"),
        ("Solve the equation below for x.", "eq", "x^2+3x=0"),
        ("Where is the function above positive?", "f", "x-2"),
        ("What is the total in the table?", "grid", "| a | b |"),
        ("Use the table to find the mean of y.", "rows", "x,y\n1,2\n3,4"),
    ],
)
def test_what_a_question_refers_to_is_missed_under_any_name(question, name, value, find):
    row = {"question": question, "answer": "B"}
    with pytest.raises(
        DataError, match=f"`{name}` may belong to the question, which (needs choices|refers to a text)"
    ):
        find([row | {name: value}])
    (source,) = find([row | {name: value}], columns={name: "ignore"})
    assert source.form.unread == [name]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which of these is prime?\nA. 4\nB. 7", "alts": ["4", "7"]},
        {"question": "Which of these is prime?\n- 4\n- 7", "xs": ["4", "7"]},
        {"question": "Which of the following is prime, 4 or 7?", "alts": ["4", "7"]},
        {
            "question": "Which of these is prime?",
            "tags": ["number theory", "primes"],
            "metadata": {"a": "b", "c": "d"},
        },
        {"question": "Which of these is prime?", "topics": ["a", "b"], "skills": ["a", "b"]},
        {"question": f"{PASSAGE}\nAccording to the passage, where does it end?", "xs": PASSAGE},
        {"question": "According to the passage, where does it end?", "rationale": PASSAGE, "url": PASSAGE},
        {"question": "Where does the river end?", "xs": PASSAGE, "ys": ["a", "b"]},
        {"question": "Simplify the following expression: $3x + 2x$", "formula": "$3 x + 2 x$"},
        {"question": f"{PASSAGE} How long is it by the given information?", "note": "a b c d e f"},
        {"question": "How long is it by the given information?", "original_question": "a b c d", "attempt": "a b c d"},
        {"question": "Which of these is prime? Options: 4, 7", "alts": ["4", "7", "9"]},
        {"question": "Solve the following equation for x. 2x = 4", "formula": "a b c d", "skill": "a b c"},
        {"question": "Simplify the given expression.", "category": "a b c d", "subject": "a b c", "kind": "simple"},
        {"question": "Solve the equation below for x: 2x = 4", "eq": "2 x = 4"},
        {"question": "Add up the table.\n| 1 | 2 |", "grid": "| 1 | 2 | 3 |", "eq": "1 + 2"},
        {"question": "According to the table, which is it?", "image": "/a.png", "ocr": PASSAGE},
    ],
)
def test_questions_that_have_what_they_refer_to(row, find):
    answer = "B" if "A. 4" in row["question"] else "Seven"
    (source,) = find([row | {"answer": answer}])
    assert len(source.form.unread) == len(row) - 1 - ("image" in row)


def test_pictures_of_tables_may_have_what_a_question_refers_to(find):
    image = {"bytes": b"\x89PNG", "path": None}
    row = {"question": "According to the table, which is it?", "answer": "B", "image": image, "ocr": PASSAGE}
    (source,) = find([row], suffix="parquet")
    assert source.form.unread == ["ocr"]


FALSE = "label is_correct answer_is_correct train chosen valid".split()
ZERO = "correct weight score keep".split()
WORDS = {"isCorrect": "False", "is_correct_answer": "0", "correctness": "incorrect", "ok": "no", "verdict": "wrong"}
WORDS_OF_OTHERS = {"verified": "no", "judge": "incorrect", "status": "rejected", "is_correct": "n"}
TRUE = "is_wrong skip rejected is_rejected".split()
MARKS = [
    *((name, False) for name in FALSE),
    *((name, 0) for name in ZERO),
    *WORDS.items(),
    ("reward", -1),
    ("score", 0.0),
    *WORDS_OF_OTHERS.items(),
    *((name, True) for name in TRUE),
]


@pytest.mark.parametrize(("name", "value"), MARKS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_that_are_marked_as_wrong_cannot_be_used(name, value, suffix, find):
    words = {"False": "True", "0": "1", "incorrect": "correct", "no": "yes", "wrong": "right"}
    words |= {"rejected": "approved", "n": "y"}
    good = words[value] if isinstance(value, str) else type(value)(name not in TRUE)
    (source,) = find([ONE | {name: good}] * 3, suffix=suffix)
    assert len(texts(source)) == 3 and source.form.unread == [name]
    (source,) = find([ONE | {name: good}, ONE | {name: value}], suffix=suffix)
    with pytest.raises(DataError, match=f"marked wrong: `{name}` is .*, which may say that the answer is not to be"):
        texts(source)
    (source,) = find([ONE | {name: value}], columns={name: "ignore"}, suffix=suffix)
    assert texts(source) == [["a", "b", None, None]]
    (source,) = find([ONE] * 120 + [ONE | {name: value}])  # turns up late
    with pytest.raises(DataError, match="marked wrong"):
        texts(source)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("label", [0, 1, 2]),
        ("label", ["yes", "no"]),
        ("label", ["A", "B"]),
        ("correct", [0, 3, 1]),
        ("correct_answer", [0, 1]),
        ("correct_option", [0, 1]),
        ("score", ["high", "low"]),
        ("grade", [0, 1]),
        ("answer_type", [0]),
        ("is_multiple", [False, True]),
        ("solution_count", [0]),
    ],
)
def test_columns_that_mark_nothing(name, values, find):
    assert not is_mark(name, values)
    (source,) = find([ONE | {name: value} for value in values])
    assert len(texts(source)) == len(values)


def test_a_value_that_is_missing_marks_nothing():
    assert is_mark("score", [None, 0.5, 3]) and not marks_wrong("score", None) and not marks_wrong("score", 0.5)


def test_lists_of_marks(find):
    (source,) = find([ONE | {"correct": [True, False]}, ONE | {"correct": [True]}])
    assert len(texts(source)) == 2
    (source,) = find([ONE | {"correct": [True]}, ONE | {"correct": [False, False]}])
    with pytest.raises(DataError, match="marked wrong: `correct` is list"):
        texts(source)


@pytest.mark.parametrize("value", [{"A": None, "B": None}, ["", ""], {"text": [], "label": []}, {"x": [{"y": ""}]}])
def test_what_holds_nothing_is_no_loss(value, find):
    for name in ("choices", "context", "hint"):
        (source,) = find([QUESTION | {name: value}])
        assert len(texts(source)) == 1
    (source,) = find([QUESTION] * 120 + [QUESTION | {"choices": value}])
    assert len(texts(source)) == 121


def test_answers_get_no_place_in_the_question(find):
    (source,) = find([QUESTION | {"multiple_choice_answer": "net", "context_label": "x"}])
    assert len(texts(source)) == 1
    with pytest.raises(DataError, match="`answer_context` may belong to the question") as error:
        find([QUESTION | {"answer_context": "The net is red."}])
    assert "input" not in str(error.value)
