"""The mini study: its data, its plan, its figures, and a small one from end to end."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from puma_trl.errors import StudyError
from puma_trl.evaluation.gap_answers import SIDES
from puma_trl.evaluation.gap_summary import DIVERGENCES
from puma_trl.evaluation.modality import MODALITIES
from puma_trl.mini import build_model, build_processor
from puma_trl.recipe import parse_recipe
from puma_trl.study import data as study_data
from puma_trl.study import report as study_report
from puma_trl.study import run as study
from puma_trl.study.report import BASELINE, Line
from puma_trl.study.teacher import write_text_model
from puma_trl.train import metrics, watch


PAIR = {"correct": True, "tokens": 3, "cut": False}
RECIPES = Path(__file__).parents[2] / "recipes" / "mini" / "study"


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    amounts = {"NUM_TOWER": 9, "NUM_ROWS": 90, "NUM_HELDOUT": 6, "NUM_ELSEWHERE": 3, "NUM_FEW": 20}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, count in amounts.items():
            monkeypatch.setattr(study_data, name, count)
        folder = study_data.data_folder(tmp_path_factory.mktemp("study"))
        study_data.write_data(folder)
        yield folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_data(small_data):
    names = ("clean", "shuffled", "noisy", "few", "few_answered", "unanswered", "terse", "larger")
    clean, shuffled, noisy, few, few_answered, unanswered, terse, larger = (
        read(small_data / f"{name}.jsonl") for name in names
    )
    assert len(read(small_data / "tower.jsonl")) == 9
    assert len(clean) == len(shuffled) == len(noisy) == 90
    for row, other in zip(clean, shuffled, strict=True):
        # the text alone is another's, of the same kind: as many words, with other numbers
        assert other | {"instruction": row["instruction"]} == row
        assert len(other["instruction"].split()) == len(row["instruction"].split())
    assert sum(row["instruction"] != other["instruction"] for row, other in zip(clean, shuffled, strict=True)) > 80
    wrong = [(row, other) for row, other in zip(clean, noisy, strict=True) if row != other]
    assert 40 <= len(wrong) <= 45
    for row, other in wrong:
        assert other["output"] == other["output_2"] != row["output"]
        assert other | {"output": row["output"], "output_2": row["output_2"]} == row
    blank = {"output": None, "output_2": None}
    assert few == clean[:20] and few_answered == [*few, *(row | blank for row in clean[20:])]
    assert unanswered == [row | blank for row in clean]
    for row, other in zip(clean, terse, strict=True):
        assert row["output"].endswith(f". {other['output']}") and other["output"] == f"Answer: {row['answer']}"
        assert other | {"output": row["output"], "output_2": row["output"]} == row
    assert {row["level"] for row in larger} == {2} and len(larger) == 90
    (jump,) = {(row.get("text_rich_modality"), row["modality"]) for row in read(small_data / "jump.jsonl")}
    rungs = [read(small_data / f"ladder{number}.jsonl") for number in (1, 2, 3, 4)]
    levels = [{(row.get("text_rich_modality"), row["modality"]) for row in rows} for rows in rungs]
    assert jump == (None, "vision_only") and levels[0] == {(None, "text_lite")}
    assert levels[1:] == [{pair} for pair in itertools.pairwise(MODALITIES[1:])]
    assert [len(rows) for rows in rungs] == 4 * [22]
    assert [bool(rows[0]["image_url"]) for rows in rungs] == [False, True, True, True]


def test_heldout_problems_are_of_the_kinds_of_the_runs_and_of_the_tower(small_data):
    """None of them is trained on, by the students or by the teacher."""
    names = ("clean", "larger", "teacher", "tower", "jump", "ladder1", "ladder2")  # the others' words have no numbers
    trained = {row["instruction"] for name in names for row in read(small_data / f"{name}.jsonl")}
    for name, level in (("heldout", 1), ("heldout_larger", 2), ("heldout_jump", 1)):
        rows = read(small_data / f"{name}.jsonl")
        assert [row["kind"] in study_data.KINDS for row in rows] == 6 * [True] + 3 * [False]
        assert {row["level"] for row in rows[:6]} == {level} and {row["level"] for row in rows[6:]} == {1}
        assert not trained & {row["instruction"] for row in rows}
    assert all("image_url_2" not in row for row in read(small_data / "teacher.jsonl"))


def test_data_is_not_written_twice(small_data):
    before = (small_data / "clean.jsonl").stat().st_mtime_ns
    study_data.write_data(small_data)
    assert (small_data / "clean.jsonl").stat().st_mtime_ns == before


@pytest.fixture
def places(tmp_path):
    return study.Places(RECIPES, tmp_path, tmp_path / "data", tmp_path / "tower", tmp_path / "teacher")


def test_plan(places):
    """Every variant is a recipe that parses, once with every seed."""
    runs = list(study.plan_runs(places, 3))
    assert {run.seed for run in runs[: len(runs) // 3]} == {0}
    for run in runs:
        assert len(run.phases) >= 1
        for phase in run.phases:
            changes = {key: value for key, value in phase.items() if key not in ("data", "answered")}
            if changes.get("teacher") == "model":
                changes["teacher_model_name_or_path"] = "teacher"
            argv = [str(piece) for key, value in changes.items() for piece in (f"--{key}", value)]
            _, args, _, _ = parse_recipe([str(RECIPES / "stage2.yaml"), *argv])
            assert all(getattr(args, key) == value or key == "trainable_parts" for key, value in changes.items())
    total = yaml.safe_load((RECIPES / "stage2.yaml").read_text())["max_steps"]
    for run in runs:
        assert sum(phase.get("max_steps", total) for phase in run.phases) == total
    for regime in {run.regime for run in runs}:
        lines = {run.variant: run for run in runs if run.regime == regime}
        assert study_report.BASELINE in lines and len({run.heldout for run in lines.values()}) == 1
        assert all(run.changes.get("against", run.variant) in lines for run in lines.values())


def test_files_of_the_variants_are_written(small_data, places):
    for run in study.plan_runs(places, 1):
        for phase in run.phases:
            assert (small_data / f"{phase.get('data', 'clean')}.jsonl").exists()
        assert (small_data / f"{run.heldout}.jsonl").exists()


def test_variants_that_train_the_same_are_one_run(places):
    runs = list(study.plan_runs(places, 2))
    folders = {}
    for run in runs:
        trained = {name: value for name, value in run.changes.items() if name != "against"}
        folders.setdefault(run.folder, []).append((run.seed, trained))
    assert all(each == same[0] for same in folders.values() for each in same)
    assert len(folders) == len({json.dumps(same[0], sort_keys=True) for same in folders.values()}) < len(runs)


def plan_folders(recipes, model, output):
    """The folders of the data, of the tower, of the teacher and of all runs."""
    places = study.find_places(recipes, model, output)
    return places.data, places.tower, places.teacher, [run.folder for run in study.plan_runs(places, 1)]


def test_edited_settings_run_anew(tmp_path, monkeypatch):
    """A folder keeps its name as long as nothing that decides about its content is edited."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    for name in ("stage2", "stage2_tower", "stage1_teacher", "variants"):
        (tmp_path / f"{name}.yaml").write_text((RECIPES / f"{name}.yaml").read_text())

    def edit(name, old, new):
        text = (tmp_path / f"{name}.yaml").read_text()
        assert old in text
        (tmp_path / f"{name}.yaml").write_text(text.replace(old, new))

    *shared, runs = before = plan_folders(tmp_path, model, tmp_path)
    edit("stage2", "# Loss", "# The loss")
    edit("variants", ", against: KL only}", "}")
    assert plan_folders(tmp_path, model, tmp_path) == (*before,)
    edit("variants", "{lambda_kl: 0.1}", "{lambda_kl: 0.2}")
    after = plan_folders(tmp_path, model, tmp_path)
    assert after == (*shared, [runs[0], after[-1][1], *runs[2:]]) and after[-1][1] != runs[1]
    edit("stage2", "max_steps: 200", "max_steps: 300")
    after = plan_folders(tmp_path, model, tmp_path)
    assert [*after[:-1]] == shared and not set(after[-1]) & set(runs)
    edit("stage2", "max_steps: 300", "max_steps: 200")
    edit("variants", "{lambda_kl: 0.2}", "{lambda_kl: 0.1}")
    assert plan_folders(tmp_path, model, tmp_path) == before
    data, tower, teacher, runs = before
    for change, changed in (
        (lambda: edit("stage2_tower", "seed: 0", "seed: 1"), {"tower"}),
        (lambda: edit("stage1_teacher", "seed: 0", "seed: 1"), {"teacher"}),
        (lambda: (model / "model.safetensors").write_bytes(b"others"), {"tower", "teacher"}),
    ):
        change()
        after = plan_folders(tmp_path, model, tmp_path)
        pairs = {"data": (data, after[0]), "tower": (tower, after[1]), "teacher": (teacher, after[2])}
        assert {name for name, (old, new) in pairs.items() if old != new} == changed
        assert not set(after[-1]) & set(runs)
        data, tower, teacher, runs = after
    monkeypatch.setattr(study_data, "NOISE", 0.4)
    after = plan_folders(tmp_path, model, tmp_path)
    assert after[0] != data and after[1] != tower and not set(after[-1]) & set(runs)


def record_calls(monkeypatch, results):
    """Has commands write what the study reads of them, and returns the list of their arguments."""
    calls = []

    def call(arguments, log):
        calls.append(arguments)
        options = dict(itertools.pairwise(arguments))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write("warning: Sign of collapse at step 7: the length has fallen to 3, from 20 at step 4. Stop.\n")
        if arguments[0] == "puma_trl.pairs":
            Path(options["--output"]).parent.mkdir(parents=True, exist_ok=True)
            Path(options["--output"]).touch()
        if arguments[0] == "puma_trl.evaluation":
            rows = "".join(json.dumps(row) + "\n" for row in results)
            Path(options["--output"]).parent.mkdir(parents=True, exist_ok=True)
            Path(options["--output"]).with_suffix(".pairs.jsonl").write_text(rows)

    monkeypatch.setattr(study, "_call", call)
    return calls


def test_phases_follow_each_other(places, monkeypatch):
    """The first one starts from the tower, each other one from what the one before has left, also to answer."""
    calls = record_calls(monkeypatch, [pair_result(kind) for kind in (*study_data.KINDS, *study_data.TOWER_KINDS)])
    phases = [{"answered": "text_rich"}, {"answered": "vision_rich", "data": "noisy"}]
    changes = {"max_steps": 7, "against": "x", "heldout": "other", "phases": phases}
    run = study.Run("regime", "variant", 3, changes, places.output / "run")
    study.execute(run, places)
    options = [dict(itertools.pairwise(call)) for call in calls]
    assert [call[0] for call in calls] == [*2 * ["puma_trl.pairs", "puma_trl.run"], "puma_trl.evaluation"]
    answer1, train1, answer2, train2, gap = options
    assert (answer1["--model"], train1["--model_name_or_path"]) == (str(places.tower), str(places.tower))
    assert answer2["--model"] == train2["--model_name_or_path"] == train1["--output_dir"]
    assert gap["--model"] == train2["--output_dir"] != train1["--output_dir"]
    assert gap["--data"] == str(places.data / "other.jsonl")
    assert [each["--data"] for each in (answer1, answer2)] == [
        str(places.data / f"{name}.jsonl") for name in ("clean", "noisy")
    ]
    assert [each["--side"] for each in (answer1, answer2)] == ["text_rich", "vision_rich"]
    for answer, train in ((answer1, train1), (answer2, train2)):
        assert train["--dataset_name"] == answer["--output"]
        assert (train["--seed"], train["--max_steps"]) == ("3", "7")
        assert not {"--against", "--heldout", "--phases", "--answered", "--data"} & train.keys()
    assert Path(answer1["--output"]).parent.parent == places.output / "own"
    assert Path(answer2["--output"]).parent == run.folder
    result = json.loads((run.folder / "result.json").read_text())
    assert (result["here"]["pairs"], result["elsewhere"]["pairs"]) == (2, 3)
    study.execute(run, places)
    assert len(calls) == 5
    # what the model that all start from has answered is there for the next seed
    study.execute(dataclasses.replace(run, seed=4, folder=places.output / "run4"), places)
    assert [call[0] for call in calls[5:]] == ["puma_trl.run", "puma_trl.pairs", "puma_trl.run", "puma_trl.evaluation"]
    places.tower.mkdir()
    study.measure_start("other", places)
    regimes, before = study.read_results([run], places)
    line = regimes["regime"]["variant"]
    assert (line.against, before["regime"].accuracies) == ("x", [1.0])
    assert line.seeds == [result | {"warnings": ["collapse: the length"]}]


def test_the_text_teacher_is_named(places, monkeypatch):
    calls = record_calls(monkeypatch, [pair_result(kind) for kind in (*study_data.KINDS, *study_data.TOWER_KINDS)])
    study.execute(study.Run("regime", "variant", 0, {"teacher": "model"}, places.output / "run"), places)
    assert dict(itertools.pairwise(calls[0]))["--teacher_model_name_or_path"] == str(places.teacher)


def test_warnings():
    """Found in a log as the trainer words them, once each and without numbers."""
    accuracy = watch.Series(1, 1)
    for step, value in ((1, 0.9), (2, 0.3)):
        accuracy.add(step, value, 1)
    args = SimpleNamespace(use_kl=True, teacher="live", lambda_kl=0.5, on_policy_share=0.0)
    ((_, sign),) = watch.find_signs({watch.TEXT_RICH: accuracy}, args)
    worse = "The teacher predicts the answers worse"
    assert worse in Path(metrics.__file__).read_text(encoding="utf-8")
    log = f"step 1\nmetrics.py:287: UserWarning: {worse} from the text-rich side (cross-entropy 0.468 …\n"
    log += 2 * f"Sign of collapse at step 2: {sign}\n"
    expected = [f"collapse: the accuracy on the text-rich side (`{watch.TEXT_RICH}`)", worse.removeprefix("The ")]
    assert study.find_warnings(log) == expected
    assert study.find_warnings("step 1 · loss 1.0\n") == []


def test_text_model(tmp_path):
    """It predicts what the language model does."""
    processor = build_processor()
    model = build_model("qwen2_vl", processor)
    model.config.text_config.rms_norm_eps = 1e-3  # another than the default
    for part in (processor, model):
        part.save_pretrained(tmp_path / "model")
    write_text_model(tmp_path / "model", tmp_path / "text")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert type(text).__name__ == "LlamaForCausalLM"
    ids = torch.randint(20, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    assert_close(text(input_ids=ids).logits, model(input_ids=ids).logits)
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "text")  # what a run reads; of a text model its tokenizer
    assert tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    words = "Find the total of 345 and 28."
    assert tokenizer(words)["input_ids"] == processor.tokenizer(words)["input_ids"]
    assert tokenizer.chat_template == processor.chat_template


def pair_result(kind):
    """What the gap writes of a pair."""
    sides = {f"{side}_{name}": value for side in SIDES for name, value in PAIR.items()}
    return {"row_id": kind, "kind": kind, "agree": True, "num_tokens": 4} | sides | dict.fromkeys(DIVERGENCES, 0.5)


def seed(accuracy, elsewhere=0.5, kl=1.0, tokens=20.0):
    """What a run leaves."""
    values = {"vision_rich_accuracy": accuracy, "text_rich_accuracy": 1.0, "agreement": accuracy / 2}
    here = values | {"vision_rich_tokens": tokens, "forward_kl": kl, "reverse_kl": 2 * kl, "pairs": 10}
    other = {"vision_rich_accuracy": elsewhere, "text_rich_accuracy": 0.9, "pairs": 5}
    return {"here": here, "elsewhere": other, "warnings": []}


def test_closed_shares():
    assert study_report.closed_shares(Line([seed(0, kl=0.5)]), Line([seed(0, kl=2.0)])) == [0.75]


@pytest.mark.parametrize(
    ("values", "words"),
    [([0.9, 0.91, 0.92], "better"), ([0.1, 0.11, 0.12], "worse"), ([0.4, 0.5, 0.63], "no clear difference")],
)
def test_compare(values, words):
    assert study_report.compare(values, [0.49, 0.5, 0.51]).verdict == words
    assert study_report.compare(values[:1], [0.49, 0.5, 0.51]) is None


def test_report(tmp_path):
    baseline = [seed(last) for last in (0.7, 0.75, 0.8)]
    better, worse = ([seed(last, elsewhere, 0.1)] * 3 for last, elsewhere in ((0.9, 0.5), (0.75, 0.2)))
    regimes = {
        "clean answers": {BASELINE: Line(baseline), "PUMA": Line(better), "on-policy": Line(worse, "PUMA")},
        "wrong answers": {BASELINE: Line(baseline), "PUMA": Line(baseline)},
    }
    before = dict.fromkeys(regimes, Line([seed(0.1)]))
    regimes["clean answers"]["on-policy"].seeds[1] = worse[0] | {"warnings": ["the length", "the entropy"]}
    study_report.write_report(regimes, before, tmp_path / "docs" / "study.md", "Setting.")
    text = (tmp_path / "docs" / "study.md").read_text()
    assert "is measured on 10 held-out problems of its kinds\nand 5 of others" in text and "over\n3 seeds" in text
    lines = [
        "| before | 100.0 | 10.0 | 5.0 | 90.0 / 50.0 |  | 20.0 |  |",
        f"| {BASELINE} | 100.0 ± 0.0 | 75.0 ± 5.0 | 37.5 ± 2.5 | 90.0 ± 0.0 / 50.0 ± 0.0 | 0.0 ± 0.0 | "
        "20.0 ± 0.0 |  |",
        "| PUMA | 100.0 ± 0.0 | 90.0 ± 0.0 | 45.0 ± 0.0 | 90.0 ± 0.0 / 50.0 ± 0.0 | 90.0 ± 0.0 | 20.0 ± 0.0 | "
        f"{BASELINE} +15.0 ± 2.9: better |",
        f"{BASELINE} +0.0 ± 2.9: no clear difference; PUMA -15.0 ± 0.0: worse |",
        f"- **PUMA** against {BASELINE}: better with clean answers (+15.0 ± 2.9); no clear difference with wrong "
        "answers (+0.0 ± 4.1).",
        "- **on-policy** against PUMA: worse with clean answers (-15.0 ± 0.0).",
        f"- **Drawings of other kinds**, against {BASELINE}, better: none. worse: clean answers, on-policy (-30.0).",
        "- **Warned of** *the entropy*: clean answers: on-policy (1 of 3 seeds).",
        "- **Warned of** *the length*: clean answers: on-policy (1 of 3 seeds).",
    ]
    for line in lines:
        assert line in text
    assert (tmp_path / "docs" / "study.png").stat().st_size > 10_000


def test_report_of_one_seed(tmp_path):
    """Nothing is compared."""
    lines = {BASELINE: Line([seed(0.7)]), "PUMA": Line([seed(0.9)]), "on-policy": Line([seed(0.8)], "PUMA")}
    study_report.write_report({"clean": lines}, {"clean": Line([seed(0.1)])}, tmp_path / "study.md", "Setting.")
    assert "| on-policy | 100.0 | 80.0 | 40.0 | 90.0 / 50.0 | 0.0 | 20.0 |  |" in (tmp_path / "study.md").read_text()


def test_a_run_that_fails_is_named_with_its_log(tmp_path):
    """What it printed is in the log, and its last line in the error."""
    (tmp_path / "stage2.yaml").write_text("alpha_lk: 1")
    run = study.Run("clean", "PUMA", 0, {}, tmp_path / "runs" / "clean-PUMA-seed0-abc")
    places = study.Places(tmp_path, tmp_path, tmp_path / "data", tmp_path / "model", tmp_path / "teacher")
    with pytest.raises(StudyError) as error:
        study.execute(run, places)
    log = run.folder / "run.log"
    start = "`python -m puma_trl.run` of the run clean-PUMA-seed0-abc ended with 2: error: Unknown key `alpha_lk`"
    assert str(error.value).startswith(start) and str(error.value).endswith(f" Its log is {log}.")
    assert log.read_text().splitlines()[-1] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_small_study(tmp_path, small_data, monkeypatch):
    """The real command: data, runs, measurements, report; and once more, where nothing is left to be done."""
    processor = build_processor()
    for part in (processor, build_model("qwen2_vl", processor)):
        part.save_pretrained(tmp_path / "model")
    for name in ("stage2", "stage2_tower", "stage1_teacher"):
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        recipe |= {"max_steps": 2, "per_device_train_batch_size": 4}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    variants = {"clean": {"cross-entropy only": {"lambda_kl": 0.0}, "text teacher": {"teacher": "model"}}}
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump(variants))
    argv = ["study", "--recipes", str(tmp_path), "--model", str(tmp_path / "model")]
    argv += ["--output", str(small_data.parent)]
    argv += ["--report", str(tmp_path / "study.md"), "--seeds", "2"]
    monkeypatch.setattr("sys.argv", argv)
    study.main()
    text = (tmp_path / "study.md").read_text()
    assert "All runs: 2 steps of 4 pairs" in text and "| text teacher |" in text
    assert not list((small_data.parent / "runs").rglob("*.safetensors"))
    (tmp_path / "study.md").unlink()
    call = study._call
    monkeypatch.setattr(study, "_call", lambda *_: pytest.fail("a run was repeated"))
    study.main()
    assert (tmp_path / "study.md").read_text() == text
    # an edited variant is the only one that is trained and measured again
    variants["clean"]["text teacher"]["lambda_kl"] = 0.3
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump(variants))
    calls = []

    def record(arguments, log):
        calls.append(arguments)
        call(arguments, log)

    monkeypatch.setattr(study, "_call", record)
    study.main()
    assert [arguments[0] for arguments in calls].count("puma_trl.run") == 2
    assert all("clean-text-teacher-seed" in " ".join(arguments) for arguments in calls)
