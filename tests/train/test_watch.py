"""Signs of collapse: told once, over curves that collapse and not over those that learn, and able to stop a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from puma_trl.config import PumaKLConfig
from puma_trl.errors import CollapseError
from puma_trl.record.hub import write_card
from puma_trl.record.provenance import read_provenance
from puma_trl.train import watch
from puma_trl.train.watch import Watch


NAMES = ("mean_length", "clipped_ratio", "repeated_ngrams")


class Trainer:
    """What the watch needs of one."""

    def __init__(self, **values):
        self.args = PumaKLConfig("out", bf16=False, use_cpu=True, report_to="none", **values)


def history(steps=20, **curves):
    """Returns a log history with a log of training every so many steps; names have `__` for `/`."""
    names = [name.replace("__", "/") for name in curves]
    return [
        {"loss": 1.0, "step": steps * number} | dict(zip(names, values, strict=True))
        for number, values in enumerate(zip(*curves.values(), strict=True), 1)
    ]


def find(logs, **values):
    """Returns [(step, sign)] of a log history."""
    watch = Watch(Trainer(**values))
    return [(each["step"], sign) for each in logs for sign in watch.read(each)]


def completions(lengths, cut_off=None, repeated=None):
    still = [0.0] * len(lengths)
    curves = {"completions__mean_length": lengths, "completions__clipped_ratio": cut_off or still}
    return history(**curves, completions__repeated_ngrams=repeated or still)


def taught(accuracies, ces=None, steps=20):
    ces = ces or [2 * (1 - accuracy) for accuracy in accuracies]
    return history(steps, teacher_mean_token_accuracy=accuracies, teacher_ce=ces)


def sampled(entropies, kls):
    return history(on_policy__entropy=entropies, on_policy__kl=kls)


@pytest.mark.parametrize(
    ("logs", "step", "words"),
    [
        (
            taught([0.98, 0.99, 0.95, 0.93], [0.1, 0.09, 0.2, 0.19]),
            80,
            "fallen to 93.0%, from 99.0% at step 40. Start",
        ),
        (completions([50.0, 40.0, 16.0]), 60, "length of sampled answers has fallen to 16 tokens, from 50 tokens at"),
        (completions([50.0, 90.0, 151.0]), 60, "length of sampled answers has risen to 151 tokens"),
        (completions([50.0] * 4, [0.3, 0.1, 0.25, 0.31]), 80, "`max_completion_length` has risen to 31.0%, from 10"),
        (completions([50.0] * 3, None, [0.1, 0.2, 0.32]), 60, "4-grams in sampled answers has risen to 32.0%, from"),
        (completions([40.0], [1.0], [0.95]), 20, "4-grams in sampled answers is 95.0%. Set"),  # which came too fast
        (sampled([0.4, 0.6, 1.3], [0.5, 0.4, 0.1]), 60, "entropy of sampled answers has risen to 1.3 nats per token"),
        (sampled([0.4, 0.1, 0.03], [0.5, 0.4, 0.3]), 60, "fallen to 0.03 nats per token, from 0.4 nats per token at"),
    ],
)
def test_signs(logs, step, words):
    """Each is seen at the log where it comes, and told once though it stays."""
    more = [logs[-1] | {"step": logs[-1]["step"] + 20 * number} for number in (1, 2, 3)]
    ((when, sign),) = find([*logs, *more])
    assert when == step and words in sign and "\n" not in sign


@pytest.mark.parametrize(
    "logs",
    [
        taught([0.9, 0.99, 0.8, 0.93], [0.1, 0.1, 0.15, 0.1]),
        taught([0.99, 0.96, 0.95], [0.001, 0.1, 0.2]),
        completions([50.0, 20.0, 140.0]),
        completions([500.0, 300.0, 60.0, 50.0], [0.9, 0.4, 0.1, 0.0]),  # which has learned to come to an end
        completions([50.0] * 4, [0.9, 0.3, 0.1, 0.2], [0.4, 0.1, 0.2, 0.25]),
        completions([0.0, 0.0]),
        sampled([0.1, 0.4, 0.9], [0.9, 0.5, 0.3]),  # which has become less certain of what it cannot know
        sampled([0.8, 0.1, 0.01], [1.2, 0.2, 0.02]),  # which has learned to be as certain as its teacher
    ],
)
def test_learning_is_no_sign(logs):
    assert find(logs) == []


# Of runs of the mini study (recipes/mini/study), a log every 20 steps: accuracy and cross-entropy of the teacher
OF_THE_STUDY = [
    # everything trains, with a live teacher, by cross-entropy alone, with an average as the teacher: replies on the
    # text-rich side end at 5 %, 18 % and 10 %
    (40, [0.934, 0.827, 0.807, 0.819, 0.817], [0.221, 0.522, 0.535, 0.519, 0.547]),
    (40, [0.952, 0.855, 0.854, 0.86, 0.878], [0.154, 0.429, 0.453, 0.455, 0.41]),
    (60, [0.999, 0.962, 0.911, 0.885, 0.876], [0.00346, 0.118, 0.261, 0.34, 0.37]),
    # the language model is frozen: half of the answers wrong, answers without steps, a teacher that knows nothing
    (None, [0.902, 0.898, 0.894, 0.896, 0.886, 0.9], [1.08, 1.12, 1.17, 1.15, 1.27, 1.11]),
    (None, [0.373, 0.371, 0.37, 0.374, 0.377, 0.371], [8.25, 8.18, 8.22, 8.05, 8.12, 8.21]),
    (None, [0.792, 0.787, 0.795, 0.793, 0.797, 0.784], [2.3, 2.35, 2.26, 2.3, 2.28, 2.39]),
]


@pytest.mark.parametrize(("step", "accuracies", "ces"), OF_THE_STUDY)
def test_curves_of_the_mini_study(step, accuracies, ces):
    assert [when for when, _ in find(taught(accuracies, ces))] == ([step] if step else [])


def test_sampled_curves_of_the_mini_study():
    """With share 1, a log every 10 steps: one that learns, and one that comes to answer nothing, with a KL of 0."""
    names = ("on_policy/entropy", "on_policy/kl", *(f"completions/{name}" for name in NAMES))
    learns = [(0.153, 1.37, 18.1, 0.0, 0.0), (0.112, 0.731, 19.0, 0.0, 0.0), (0.0667, 0.36, 18.6, 0.0, 0.0)]
    learns += [(0.0395, 0.177, 18.8, 0.0, 0.0), (0.0322, 0.0808, 19.2, 0.0, 0.0), (0.0267, 0.0531, 18.8, 0.0, 0.0)]
    ends = [(0.18, 0.825, 25.4, 0.194, 0.243), (0.119, 0.0899, 8.36, 0.081, 0.859), (2.5e-5, 2.2e-9, 1.0, 0.0, 0.0)]
    found = [find(history(10, **dict(zip(names, zip(*each, strict=True), strict=True)))) for each in (learns, ends)]
    assert [[when for when, _ in each] for each in found] == [[], [20, 30]]
    (_, repeats), (_, falls) = found[1]
    assert "4-grams in sampled answers is 55.1%" in repeats and "mean length of sampled answers" in falls


def test_single_steps_are_no_sign():
    """Means are over the same steps however often is logged; one batch, however odd, moves them little."""
    curve = [0.98] * 30 + [0.5] + [0.98] * 9 + [0.5] * 10
    ((step, sign),) = find(taught(curve, steps=1))
    assert 42 <= step <= 43
    assert find(taught([0.9, 0.5] * 20, steps=1)) == []
    ((step, _),) = find(taught([0.98, 0.5], steps=500))
    assert step == 1000


def test_steps_without_sampled_answers():
    """With a share below 1 some logs have none."""
    logs = taught([0.9] * 120, steps=1)
    for number, each in enumerate(logs[::3]):
        each |= {"on_policy/entropy": 0.2 if number < 20 else 3.0, "on_policy/kl": 0.1}
    ((step, sign),) = find(logs)
    assert "the entropy of sampled answers has risen" in sign and 70 <= step <= 80


def test_evaluations():
    """Two measurements together: one that is low by chance is no sign, one that is lost is."""

    def measured(*accuracies, name="eval_text_rich_accuracy"):
        return [{name: value, "step": 50 * number} for number, value in enumerate(accuracies, 1)]

    assert find(measured(0.8, 0.5, 0.8)) == []
    ((step, sign),) = find(measured(0.8, 0.5, 0.5))
    assert step == 150 and "has fallen to 50.0%, from 80.0% at step 50" in sign
    assert [step for step, _ in find(measured(1.0, 0.05))] == [100]
    logs = measured(1.0, 0.9, name="eval_other_teacher_mean_token_accuracy")
    for each, ce in zip(logs, (0.1, 0.5), strict=True):
        each["eval_other_teacher_ce"] = ce
    assert [step for step, _ in find(logs, teacher="frozen")] == [100]
    for name in ("eval_vision_rich_accuracy", "eval_mean_token_accuracy"):
        assert find(measured(1.0, 0.05, name=name)) == []
    assert find([{"step": 5, "eval_words": "few", "train_runtime": 1.0}]) == []


def test_teachers_that_stay():
    """Only rows can have become harder for them."""
    logs = taught([0.98, 0.7])
    assert len(find(logs, teacher="ema")) == 1 and find(logs, teacher="frozen") == []


def test_remedies_fit_the_teacher():
    logs = [{"eval_text_rich_accuracy": value, "step": step} for step, value in enumerate((1.0, 0.0), 1)]
    no_kl = ({"teacher": "frozen"}, {"use_kl": False}, {"lambda_kl": 0.0})
    sampled_only = {"lambda_kl": 0.0, "on_policy_share": 0.5}
    for values, is_named in (({}, True), (sampled_only, True), *((values, False) for values in no_kl)):
        ((_, sign),) = find(logs, **values)
        assert ("`teacher: frozen`" in sign) == is_named and "fewer `trainable_parts`" in sign


def test_each_training_is_watched_anew():
    logs, watching = taught([0.98, 0.7]), Watch(Trainer())
    for _ in range(2):
        watching.on_train_begin(None, SimpleNamespace(log_history=[], is_world_process_zero=False), None)
        assert sum(len(watching.read(each)) for each in logs) == 1


@pytest.fixture
def collapsing(monkeypatch):
    """Lets whatever the teacher does be a sign after two steps."""
    monkeypatch.setattr(watch, "STEPS", 2)
    monkeypatch.setattr(watch, "TOKEN_SHARE", -1.0)
    monkeypatch.setattr(watch, "CE_FACTOR", 0.0)


FLAGS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 100, "resume_from_checkpoint": True}


def test_a_collapse_stops_the_run(main, folder, collapsing, caplog):
    """A checkpoint is saved at that step; the same command goes on from there, since a sign is told once in a run."""
    with pytest.raises(CollapseError, match="Stopped at step 2, checkpoint saved: the accuracy on the text-rich side"):
        main(stop_on_collapse=True, **FLAGS)
    assert [path.name for path in (folder / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert (folder / "out" / "checkpoint-2" / "checkpoint_complete").is_file()
    assert not (folder / "out" / "model.safetensors").exists()
    assert caplog.text.count("Sign of collapse") == 1 and "Sign of collapse at step 2: the accuracy" in caplog.text
    out = main(stop_on_collapse=True, **FLAGS)
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 4
    assert caplog.text.count("Sign of collapse") == 1


def test_a_collapse_is_told_only(main, collapsing, caplog):
    out = main(**FLAGS)
    assert caplog.text.count("Sign of collapse") == 1
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 4


def test_signs_stand_in_the_end_table_and_the_card(main, folder, collapsing, caplog, capsys, monkeypatch):
    """Also those before a resume, one line each; a card that is written anew for a push has them too."""
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(CollapseError):
        main(stop_on_collapse=True, **FLAGS)
    out = main(stop_on_collapse=True, **FLAGS)
    (sign,) = (
        record.message.split("Sign of collapse at ")[1] for record in caplog.records if "Sign" in record.message
    )
    table = [line for line in capsys.readouterr().out.splitlines() if "Sign of collapse" in line]
    assert len(table) == 1 and sign in table[0] and sign.startswith("step 2: ")
    assert f"\n**Sign of collapse** at {sign}\n" in (out / "README.md").read_text()
    write_card(out, read_provenance(out))
    assert f"\n**Sign of collapse** at {sign}\n" in (out / "README.md").read_text()


def test_a_card_in_python_has_the_signs(train, tiny_model, pairs, collapsing):
    trainer = train(tiny_model(), pairs(8), max_steps=4)
    trainer.create_model_card()
    (sign,) = trainer.watch.signs.values()
    assert f"\n**Sign of collapse** at {sign}\n" in Path(trainer.args.output_dir, "README.md").read_text()
    trainer = train(tiny_model(), pairs(8), max_steps=1)
    trainer.create_model_card()
    assert "Sign of collapse" not in Path(trainer.args.output_dir, "README.md").read_text()


def test_a_collapse_at_the_end_loses_nothing(main, collapsing):
    assert (main(stop_on_collapse=True, **FLAGS | {"max_steps": 2}) / "model.safetensors").is_file()
