"""The modality gap of a pair file: answer match, accuracies, divergence per token and its shuffled control."""

import json
import random
import sys

import pytest
import torch
from PIL import Image

from puma_trl.data.images import open_image
from puma_trl.errors import EvaluationError
from puma_trl.evaluation.__main__ import main
from puma_trl.evaluation.divergence import measure_divergence, shuffle_teachers
from puma_trl.evaluation.gap import load_pairs
from puma_trl.evaluation.gap_answers import answer_pairs, answer_sides, longest_reply, options_of, same_answer
from puma_trl.evaluation.gap_summary import compare_models, summarise
from puma_trl.evaluation.local_model import Generator, Prompt, Reply
from puma_trl.evaluation.modality import MODALITIES
from puma_trl.evaluation.paired import compare_outcomes, mcnemar
from puma_trl.mini import IMAGE_SIZE, KINDS, LABEL_GRID
from puma_trl.models.families import get_family
from puma_trl.pairs.generate.files import write_pairs
from puma_trl.pairs.generate.pairs import generate_pairs

from .definition import naive_log_probs


@pytest.fixture
def pair_file(tmp_path):
    rows = []
    for index in range(5):
        Image.new("RGB", (56, 28 + 28 * (index % 2)), (40 * index, 0, 0)).save(tmp_path / f"{index}.png")
        rows.append(
            {
                "image_url": "",
                "instruction": f"One angle is {10 + index}. Find the other." + " Think." * index,
                "output": f"90 - {10 + index} = {80 - index}. Answer: {80 - index}",
                "image_url_2": f"{index}.png",
                "instruction_2": "Find the other.",
                "output_2": f"90 - {10 + index} = {80 - index}. Answer: {80 - index}",
                "kind": "angles" if index % 2 else "sums",
                "level": 1,
            }
        )
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def checked_pairs(pair_file, processor, tiny_model):
    family = get_family(tiny_model().config)
    return load_pairs(str(pair_file), None, None, processor, family), family


@pytest.mark.parametrize(
    ("reply", "gold", "same"),
    [
        ("68 + 33 = 101. Answer: 79", "180 - 101 = 79. Answer: 79", True),
        ("Answer: 79.0", "Answer: 79", True),
        ("Answer: 78", "Answer: 79", False),
        ("The answer is 79 but really Answer: 80", "Answer: 79", False),
        ("so \\boxed{x = 3}", "Answer: x=3", True),
        ("It is B", "Answer: b", True),
        ("no idea", "Answer: 79", False),
        ("", "Answer: 79", False),
        ("parallel lines", "Parallel  lines", True),
        ("1,250", "Answer: 1250", True),
        ("It is 79 cm.", "Answer: 79", True),
        ("\\boxed{\\frac{3}{4}}", "Answer: 0.75", True),
        ("<think>78?</think>79", "Answer: 79", True),
        # what is denied or left open
        ("The answer is not 79.", "Answer: 79", False),
        ("I don't think it is 79.", "Answer: 79", False),
        ("78 or 79", "Answer: 79", False),
        ("It is 78 or 79.", "Answer: 79", False),
        # units: of one kind by their size, of two kinds never
        ("It takes 120 minutes.", "Answer: 2 hours", True),
        ("It takes 2 minutes.", "Answer: 2 hours", False),
        ("30 cm", "Answer: 30°", False),
        ("30 degrees", "Answer: 30°", True),
        ("5 km/h", "Answer: 5 km", False),
        ("10 m/s", "Answer: 36 km/h", True),
        ("2 L", "Answer: 2000 cm^3", True),
        ("0.5", "Answer: 50%", True),
        ("50", "Answer: 50%", True),
        ("0.05", "Answer: 50%", False),
        # times
        ("The train leaves at 3:15 am.", "The train leaves at 3:15 pm.", False),
        ("It leaves at 15:15.", "The train leaves at 3:15 pm.", True),
        ("It leaves at 3 am.", "It leaves at 3 pm.", False),
        ("Answer: t = 3 a.m.", "Answer: t = 3 p.m.", False),
        ("Answer: t = 3 p.m.", "Answer: t = 3 pm", True),
        # decimal commas
        ("Der Winkel ist 93,6°.", "93,6°", True),
        ("93.6", "$93{,}6^\\circ$", True),
        ("Der Umfang ist 13,5 cm.", "12,5 cm", False),
        ("6", "93,6", False),
        ("1,5", "5", False),
        ("125", "0,125", False),
        ("1/8", "0,125", True),
        ("1000.5", "1.000,50", True),
        ("x = 2,5", "Answer: x = 2.5", True),
        ("1234", "1,234", True),
        ("12345", "12{,}345", True),
        ("5", "(2,5)", False),
        ("(2,5)", "(2,5)", True),
        # several values
        ("x = -3 or x = 3", "Answer: x = 3 or x = -3", True),
        ("Answer: x = ±3", "Answer: x = 3 or x = -3", True),
        ("Answer: -3", "Answer: x = 3 or x = -3", False),
        ("Answer: x = 4, y = 3", "Answer: x = 3, y = 4", False),
        ("Answer: 4", "Answer: x = 3, y = 4", False),
        # yes and no
        ("Yes, because 5 > 3.", "Yes", True),
        ("No, 5 > 3.", "Answer: yes", False),
        ("不是", "是", False),
        ("是的。", "是", True),
        ("A. Yes", "Yes", True),
        ("A and B are equal, so yes.", "Yes", True),
        # which are no options: a letter says neither
        *[(reply, "Yes", False) for reply in ("A", "(a)", "The answer is A.", "\\boxed{A}", "Die Antwort ist A.")],
        *[(reply, "No, it is not.", False) for reply in ("B", "A is wrong, so B", "option B", "2")],
        *[(reply, "是", False) for reply in ("A", "选A", "答案是A。", "1")],
        # prose with a number by the way
        ("There are 4.", "The figure is a rhombus because all 4 sides are equal.", False),
        ("All 4 sides are equal.", "All 4 sides are equal.", True),
        ("4", "All 4 sides are equal. So it is a rhombus.", False),
        ("5", "The triangle is isosceles because AB = 5.", False),
        ("5", "No, it is 5", False),
        ("5", "It is 5 because 2 + 3 = 5.", True),
        ("7", "There are 7 apples left.", True),
        ("104", "The angle is 104 degrees. This follows from the sum.", True),
    ],
)
def test_same_answer(reply, gold, same):
    assert same_answer(reply, gold) is same


def test_options_are_consulted_where_the_gold_answer_is_a_letter():
    row = {"instruction": "How long is AB?\nA: 10\nB: 20", "output_2": "So it is 20.\nAnswer: B"}
    assert options_of(row) == ("10", "20") and options_of(row | {"output_2": "Answer: 20"}) == ()
    assert same_answer("AB is 20 long.", row["output_2"], ("10", "20"))
    assert not same_answer("AB is 10 long.", row["output_2"], ("10", "20"))
    assert same_answer("Es sind 93.6°.", "B", ("103,7°", "93,6°"))


def test_accuracy_on_both_sides(checked_pairs):
    rows, _ = checked_pairs

    class Oracle:
        """Right on the text-rich side, right on every other picture."""

        def batches(self, prompts):
            return [list(reversed(range(len(prompts))))]

        def answer(self, prompts):
            gold = [output.split()[-1] for output in rows["output_2"]]
            return [
                Reply(f"Answer: {gold[position] if not prompt.images or position % 2 else 1}", 4, position > 3)
                for position, prompt in reversed(list(enumerate(reversed(prompts))))
            ]

    pairs = answer_pairs(Oracle(), rows, "oracle")
    assert [pair["text_rich_correct"] for pair in pairs] == [True] * 5
    assert [pair["vision_rich_correct"] for pair in pairs] == [False, True, False, True, False]
    assert pairs[3]["vision_rich_reply"] == "Answer: 77" and pairs[3]["vision_rich_answer"] == "77"
    assert [pair["agree"] for pair in pairs] == [False, True, False, True, False]
    divergence = {"num_tokens": 2, "forward_kl": 0.5, "reverse_kl": 1.0}
    control = {"shuffled_forward_kl": 2.0, "shuffled_reverse_kl": 3.0}
    groups = [{"kind": "angles" if index % 2 else "sums", "modality": ""} for index in range(5)]
    for index, level in enumerate((1, "1", ["a"])):  # of files of several forms
        groups[index]["level"] = level
    weighted = [pair | group | divergence | control for pair, group in zip(pairs, groups, strict=True)]
    weighted[0] |= {"num_tokens": 12, "forward_kl": 1.5}
    summary = summarise("oracle", "path/oracle", weighted)
    assert summary["text_rich_accuracy"] == 1.0
    assert summary["vision_rich_accuracy"] == 0.4
    assert summary["gap"] == pytest.approx(0.6) and summary["gap_p"] == 0.25  # 2 · (1/2)^3
    assert summary["text_rich_interval"] == pytest.approx((0.5655, 1.0), abs=1e-4)
    assert summary["gap_interval"][0] < 0.6 < summary["gap_interval"][1]
    assert (summary["agreement"], summary["vision_rich_tokens"], summary["vision_rich_cut"]) == (0.4, 4, 0.2)
    assert {value: group["gap"] for value, group in summary["by"]["kind"].items()} == {"angles": 0.0, "sums": 1.0}
    assert {value: group["pairs"] for value, group in summary["by"]["level"].items()} == {"1": 2, "['a']": 1}
    assert "modality" not in summary["by"]
    assert summary["answer_tokens"] == 20
    assert summary["forward_kl"] == pytest.approx((12 * 1.5 + 8 * 0.5) / 20)
    assert summary["shuffled_reverse_kl"] == 3.0


@pytest.mark.parametrize("rank", [0, 1])
def test_one_bar_of_several_processes_that_ends_full(checked_pairs, monkeypatch, capsys, rank):
    class Silent:
        batches, answer = (lambda self, prompts: [[0, 1], [2, 3], [4]]), (lambda self, prompts: [Reply("", 1, 0)] * 2)

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    answers = answer_sides(Silent(), checked_pairs[0], "gap", lambda batches: batches[rank:2:2])
    assert sorted(answers) == [2 * rank, 2 * rank + 1]
    bars = capsys.readouterr().err
    assert bars.count("| 2/2 [") == 2 if rank == 0 else not bars


@pytest.mark.parametrize("command", ["gap", "extract", "score", "report"])
def test_one_process_is_asked_for_where_the_work_is_not_shared(monkeypatch, capsys, command):
    required = {"gap": ["--model", "m", "--data", "d"], "report": []}
    more = required.get(command, ["--benchmark", "mathverse", "--responses", "r"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, *more]) == 1
    assert f"`{command}` is the work of one process, but 2 run." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (3, 0, 0.25), (0, 6, 2 / 64), (5, 5, 1.0), (1, 7, 2 * (1 + 8) / 256), (1000, 1100, 0.0308)],
)
def test_mcnemar(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-2)


def test_interval_of_a_paired_difference():
    """Without correlation it is Newcombe's for two samples; with it, it is narrower, and it covers what it should."""
    independent = (
        [True] * 6 + [True] * 6 + [False] * 4 + [False] * 4,
        ([True] * 3 + [False] * 3) * 2 + [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2,
    )
    loose = compare_outcomes(*independent)
    (low_1, high_1), (low_2, high_2) = (0.3866, 0.7812), (0.2993, 0.7007)  # Wilson of 12 and of 10 of 20
    assert loose["difference"] == pytest.approx(0.1)
    assert loose["interval"][0] == pytest.approx(0.1 - ((0.6 - low_1) ** 2 + (high_2 - 0.5) ** 2) ** 0.5, abs=1e-3)
    assert loose["interval"][1] == pytest.approx(0.1 + ((high_1 - 0.6) ** 2 + (0.5 - low_2) ** 2) ** 0.5, abs=1e-3)
    tight = compare_outcomes([True] * 12 + [False] * 8, [True] * 10 + [False] * 10)
    assert tight["difference"] == pytest.approx(0.1) and (tight["only_first"], tight["only_second"]) == (2, 0)
    assert tight["interval"][0] > loose["interval"][0] and tight["interval"][1] < loose["interval"][1]
    rng, covered = random.Random(0), 0
    for _ in range(1000):
        draws = rng.choices([(True, True), (True, False), (False, True), (False, False)], (5, 3, 1, 3), k=60)
        low, high = compare_outcomes(*zip(*draws, strict=True))["interval"]
        covered += low <= 2 / 12 <= high
    assert 930 <= covered <= 975


def test_two_models_are_compared_on_the_same_pairs():
    def answered(*answers):
        return [
            {f"{side}_{name}": value for side in ("text_rich", "vision_rich") for name, value in given.items()}
            for given in ({"answer": answer, "correct": answer == "1"} for answer in answers)
        ]

    pairs = {"before": answered("1", "2", "3", None), "after": answered("1", "1", "1", None)}
    (comparison,) = compare_models(pairs)
    assert (comparison["first"], comparison["second"]) == ("before", "after")
    change = comparison["vision_rich"]
    assert (change["difference"], change["only_first"], change["only_second"], change["p"]) == (0.5, 0, 2, 0.5)
    assert change["agreement"] == 0.25  # no answer agrees with nothing


@pytest.mark.parametrize("num_rows", [2, 3, 50])
def test_shuffled_teacher_is_always_another_problem(num_rows):
    others = shuffle_teachers(range(num_rows), seed=0)
    assert sorted(others) == list(range(num_rows))
    assert all(other != position for position, other in enumerate(others))


def test_one_pair_has_no_control():
    with pytest.raises(EvaluationError, match="at least two"):
        shuffle_teachers(range(1), seed=0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_divergence_per_token_equals_definition(checked_pairs, processor, tiny_model, batch_size):
    rows, family = checked_pairs
    model = tiny_model().eval()
    measured = measure_divergence(model, processor, family, rows, batch_size, "tiny")
    others = shuffle_teachers(rows, seed=0)
    for position, result in enumerate(measured):
        row, other = rows[position], rows[others[position]]
        picture = [open_image(row["image_url_2"][0])]
        student, _ = naive_log_probs(model, processor, row["instruction_2"], picture, row["output_2"])
        for prefix, source in (("", row), ("shuffled_", other)):
            teacher, _ = naive_log_probs(model, processor, source["instruction"], [], row["output_2"])
            forward = (teacher.exp() * (teacher - student)).sum() / len(student)
            reverse = (student.exp() * (student - teacher)).sum() / len(student)
            assert result[f"{prefix}forward_kl"] == pytest.approx(forward.item(), rel=1e-3, abs=1e-7)
            assert result[f"{prefix}reverse_kl"] == pytest.approx(reverse.item(), rel=1e-3, abs=1e-7)
        assert result["num_tokens"] == len(student)
        assert result["forward_kl"] != pytest.approx(result["shuffled_forward_kl"], rel=1e-3)


def test_gap_command_compares_models(pair_file, processor, tiny_model, tmp_path, capsys):
    for name, seed in (("before", 0), ("after", 1)):
        tiny_model(seed).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    output = tmp_path / "results" / "gap.json"
    models = [str(tmp_path / "before"), str(tmp_path / "after")]
    options = ["--data", str(pair_file), "--output", str(output), "--max_new_tokens", "4", "--num_rows", "4"]
    assert main(["gap", "--model", *models, *options]) == 0
    summaries = json.loads(output.read_text())["models"]
    assert [summary["label"] for summary in summaries] == ["before", "after"]
    assert all(summary["pairs"] == 4 for summary in summaries)
    assert all(
        summary["gap"] == summary["text_rich_accuracy"] - summary["vision_rich_accuracy"] for summary in summaries
    )
    assert summaries[0]["forward_kl"] != summaries[1]["forward_kl"]
    pairs = [json.loads(line) for line in output.with_suffix(".pairs.jsonl").read_text().splitlines()]
    assert [(pair["label"], pair["row_id"]) for pair in pairs[3:5]] == [
        ("before", "pairs.jsonl:4"),
        ("after", "pairs.jsonl:1"),
    ]
    assert Image.open(output.with_suffix(".png")).width > 100
    table = capsys.readouterr().out
    assert "before" in table and "after" in table and "4 pairs" in table
    assert "McNemar p = " in table and "kind angles: " in table and "after against before:" in table
    assert all(pair["vision_rich_tokens"] <= 4 and pair["kind"] in ("angles", "sums") for pair in pairs)
    assert set(summaries[0]["by"]) == {"kind", "level"} and summaries[0]["by"]["level"]["1"]["pairs"] == 4
    (comparison,) = json.loads(output.read_text())["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("before", "after")


def test_gap_of_each_level_of_modality(processor, tiny_model, tmp_path, capsys):
    """In the order from words to picture, whatever that of the rows; and drawn."""
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = list(generate_pairs(2, 0, KINDS, modality=MODALITIES, image_size=IMAGE_SIZE, label_grid=LABEL_GRID))
    write_pairs(reversed(rows), tmp_path / "pairs.jsonl", "images")
    output = tmp_path / "gap.json"
    options = ["--data", str(tmp_path / "pairs.jsonl"), "--output", str(output), "--max_new_tokens", "4"]
    assert main(["gap", "--model", str(tmp_path / "model"), *options]) == 0
    (summary,) = json.loads(output.read_text())["models"]
    assert list(summary["by"]["modality"]) == list(MODALITIES)
    for group in summary["by"]["modality"].values():
        assert group["pairs"] == 2 and len(group["vision_rich_interval"]) == len(group["gap_interval"]) == 2
    text = capsys.readouterr().out
    places = [text.index(f"modality {level}: ") for level in MODALITIES]
    assert places == sorted(places)
    pairs = [json.loads(line) for line in output.with_suffix(".pairs.jsonl").read_text().splitlines()]
    assert [pair["modality"] for pair in pairs] == [*MODALITIES[::-1]] * 2


@pytest.mark.parametrize("fault", ["no model", "no second side"])
def test_gap_command_explains_bad_input(pair_file, processor, tiny_model, tmp_path, capsys, fault):
    folder = tmp_path / "model"
    if fault == "no model":
        folder.mkdir()
        expected = "No image-text-to-text model"
    else:
        tiny_model().save_pretrained(folder)
        processor.save_pretrained(folder)
        rows = [json.loads(line) for line in pair_file.read_text().splitlines()]
        pair_file.write_text("".join(json.dumps({k: row[k] for k in list(row)[:3]}) + "\n" for row in rows))
        expected = "one side only (image_url, instruction, output), but the gap and `use_kl: true` need pairs"
    assert main(["gap", "--model", str(folder), "--data", str(pair_file), "--output", str(tmp_path / "g.json")]) == 1
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "g.json").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--num_rows", "-1"), "`num_rows` is -1, but"),
        (("--max_new_tokens", "0"), "`max_new_tokens` 0, but"),
        (("--dtype", "x"), "`dtype` is 'x', but"),
        (("--output", "gap.png"), "`--output gap.png` must end with .json"),
    ],
)
def test_options_out_of_range_are_no_defaults(pair_file, processor, tiny_model, tmp_path, capsys, option, message):
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    options = ["--data", str(pair_file), "--output", str(tmp_path / "g.json")]
    assert main(["gap", "--model", str(tmp_path / "model"), *options, *option]) == 1
    assert message in capsys.readouterr().err


def test_data_are_checked_before_a_model_is_loaded(pair_file, processor, tiny_model, tmp_path, monkeypatch, capsys):
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "2.png").unlink()
    monkeypatch.setattr("puma_trl.evaluation.gap.load_for_generation", lambda *_: pytest.fail("loaded"))
    options = ["--data", str(pair_file), "--output", str(tmp_path / "g.json")]
    assert main(["gap", "--model", str(tmp_path / "model"), *options]) == 1
    assert "2.png" in capsys.readouterr().err


def test_replies_say_how_long_they_are(processor, tiny_model):
    model = tiny_model().eval()
    generator = Generator(model, processor, max_new_tokens=5)
    prompts = [Prompt("How long is it?"), Prompt("Why?")]
    assert all((reply.num_tokens, reply.is_cut) == (5, True) for reply in generator.answer(prompts))
    end = model.generation_config.eos_token_id[0]
    model.generate = lambda input_ids, **_: torch.cat(
        (input_ids, torch.tensor([[7, 8, end, 0, 0], [7, 8, 9, 7, 8]])), dim=1
    )
    assert [(reply.num_tokens, reply.is_cut) for reply in generator.answer(prompts)] == [(3, False), (5, True)]


def test_longest_reply_follows_gold(checked_pairs, processor):
    rows, _ = checked_pairs
    answer_tokens = len(processor.tokenizer("90 - 10 = 80. Answer: 80")["input_ids"]) + 1
    assert longest_reply(rows, None) == 8 + answer_tokens * 5 // 4 and longest_reply(rows, 7) == 7
