"""`puma-trl init`: recipes that a dry run accepts, and words for what does not go."""

import io
import re
from pathlib import Path

import pytest
import yaml

from puma_trl import run
from puma_trl.config import PumaKLConfig
from puma_trl.errors import ConfigError, ModelError
from puma_trl.mini import write_data
from puma_trl.recipe import parse_recipe
from puma_trl.start import init
from puma_trl.start.asking import QUESTIONS, main
from puma_trl.start.init import choose
from puma_trl.start.write import ADAPTERS

from ..models.family_models import build_family, write_text_model
from .test_memory import read_config


ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--tf32", "false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init")
    processor, model = build_family("qwen2_vl")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    write_text_model(folder / "text")
    write_data(folder / "data", num_rows=8, num_heldout=2, seed=0, num_proc=1)
    return folder


@pytest.fixture
def write(folder, tmp_path, monkeypatch):
    """Returns a function that runs the command in an empty folder and returns the recipe."""
    monkeypatch.chdir(tmp_path)

    def write(data="stage2", **options):
        options = {"model": folder / "model", "data": folder / "data" / f"{data}.jsonl", "gpus": 0} | options
        main([str(piece) for name, value in options.items() for piece in (f"--{name}", value)])
        return Path("recipe.yaml")

    return write


@pytest.mark.parametrize(
    ("data", "options", "parts"),
    [
        ("stage2", {}, "aligner, vision_tower_low, vision_tower_high"),
        ("stage3", {}, "all"),
        ("stage1", {"stage": 1}, "language_model"),
        ("stage2", {"adapters": "lora", "memory": 16}, "aligner, vision_tower_low, vision_tower_high"),
    ],
)
def test_a_dry_run_accepts_the_recipe(write, capsys, data, options, parts):
    recipe = write(data, **options)
    said = capsys.readouterr().out
    assert "recipe.yaml is written: stage" in said and "Next: puma-trl train recipe.yaml --dry_run true" in said
    values = yaml.safe_load(recipe.read_text())
    assert (values["attn_implementation"], values["padding_free"]) == ("varlen", True)
    assert values["trainable_parts"] == parts and values["use_kl"] == (data == "stage2")
    assert bool(values.get("use_peft")) == ("adapters" in options)
    assert ("puma-trl merge outputs/recipe outputs/recipe-merged" in recipe.read_text()) == ("adapters" in options)
    assert run.main([str(recipe), "--dry_run", "true"]) is None
    table = capsys.readouterr().out
    processes, rows, steps, total = map(
        int, re.search(r"(\d+) × (\d+) × (\d+) = (\d+)\.", recipe.read_text()).groups()
    )
    assert f"{total} = {rows} per device × {steps} accumulation × {processes} processes" in table
    assert "8 of 8 (none dropped)" in table


def test_another_model_that_teaches(write, folder, capsys):
    """It is planned, named in the recipe, and a dry run accepts it."""
    sizes = []
    for number, options in enumerate([{}, {"teacher": folder / "text"}]):
        write(**options, output=f"{number}.yaml", memory=16)
        sizes.append(float(re.search(r"Memory plan: ([\d.]+) GB", Path(f"{number}.yaml").read_text())[1]))
    values = yaml.safe_load(Path("1.yaml").read_text())
    assert (values["teacher"], values["teacher_model_name_or_path"]) == ("model", str(folder / "text"))
    assert not {"teacher_load_in_4bit", "teacher_model_init_kwargs"} & values.keys() and sizes[0] <= sizes[1]
    assert run.main(["1.yaml", "--dry_run", "true"]) is None
    assert "Qwen3ForCausalLM from" in capsys.readouterr().out
    write(teacher=folder / "text", gpus=1, memory=24, adapters="qlora", output="4bit.yaml")
    values = yaml.safe_load(Path("4bit.yaml").read_text())
    assert values["teacher_load_in_4bit"] is True and values["teacher_model_init_kwargs"] == {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("options", "engine", "precision"),
    [
        ({"gpus": 1, "memory": 24}, "single_gpu", ("float32", None)),
        ({"gpus": 1, "memory": 24, "adapters": "qlora"}, "single_gpu", ("bfloat16", True)),
        ({"gpus": 8, "memory": 80}, "zero2_8xa100", ("bfloat16", None)),
        ({"gpus": 2, "memory": 24, "adapters": "lora"}, "ddp", ("bfloat16", None)),
    ],
)
def test_recipes_for_gpus(write, options, engine, precision):
    recipe = write(**options)
    _, args, model_args, values = parse_recipe([str(recipe), *ON_CPU])
    assert f"accelerate_configs/{engine}.yaml" in recipe.read_text()
    assert (model_args.dtype, values.get("load_in_4bit")) == precision
    written = yaml.safe_load(recipe.read_text())
    assert written["bf16"] and written["tf32"] and "use_cpu" not in written
    assert args.gradient_checkpointing == written["gradient_checkpointing"]


def test_pictures_of_qwen_are_bounded_to_half_a_row(write, folder, tmp_path):
    assert "max_pixels" not in write().read_text()  # the mini model's are smaller than that
    processor, model = build_family("qwen2_vl")
    processor.image_processor.size["longest_edge"] = 14**2 * 10**6
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write(model=tmp_path / "model", output="large.yaml")
    assert yaml.safe_load(Path("large.yaml").read_text())["max_pixels"] == 1024 * 28**2


def test_the_terminal_is_asked(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = str(folder / "data" / "stage2.jsonl")
    answers = iter([str(folder / "model"), f"{data}, {folder / 'data' / 'heldout.jsonl'}", "", "0", "", "none"])
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(answers))
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    main(["--output", "asked.yaml"])
    values = yaml.safe_load(Path("asked.yaml").read_text())
    assert values["model_name_or_path"] == str(folder / "model") and len(values["dataset_name"]) == 2
    assert len(asked) == len(QUESTIONS) and not (answers and list(answers))
    main(["--model", str(folder / "model"), "--data", data, "--gpus", "0"])  # enough is given
    assert len(asked) == len(QUESTIONS)


def test_a_wrong_answer_is_asked_for_again(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, data = str(folder / "model"), str(folder / "data" / "stage2.jsonl")
    answers = iter(
        ["", "no/such/model", model, "no/such.jsonl", data, "4", "2", "x", "-1", "0", "0", "16", "lore", "lora"]
    )
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    main(["--output", "my recipe"])
    said = capsys.readouterr().out
    assert said.count("error: ") == 8 and "Did you mean `lora`?" in said and "`--model no/such/model`" in said
    assert "Next: puma-trl train 'my recipe.yaml' --dry_run true" in said
    assert yaml.safe_load(Path("my recipe.yaml").read_text())["lora_r"] == 64


def test_no_more_answers(tmp_path, monkeypatch):
    """Ctrl-D at the first question."""

    def end(question):
        raise EOFError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", end)
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    with pytest.raises(ConfigError, match="`--model` and `--data` must be given"):
        main([])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "`--model` and `--data` must be given"),
        (["--model", "model"], "^`--data` must be given"),
    ],
)
def test_what_must_be_given(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ConfigError, match=message):
        main(argv)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": "stage3", "stage": 2}, ConfigError, "`--stage 2` trains on pairs, but .*pairs build"),
        ({"adapters": "qlora"}, ConfigError, "`--adapters qlora` needs a GPU"),
        (
            {"gpus": 1, "memory": 1},
            ConfigError,
            r"at least 1\.\d GB, whether full, LoRA or QLoRA; each GPU has 1 GB",
        ),
        ({"gpus": 1, "memory": 1, "adapters": "lora"}, ConfigError, "or leave `--adapters` out"),
        ({"gpus": -1, "memory": 4}, ConfigError, "`--gpus` is -1; it must be 0"),
        ({"gpus": 2}, ConfigError, "`--gpus 2`: no GPU is seen here.*`--memory`"),
        ({"model": "no/such/model"}, ModelError, r"found for `--model no/such/model` .* id of a model on the Hub\.$"),
        ({"teacher": "no/such/model"}, ModelError, "found for `--teacher no/such/model` "),
        ({"data": "stage3", "teacher": "x"}, ConfigError, "`--teacher x` teaches in stage 2, and this .* of stage 3"),
        ({"output": "recipe.txt"}, ConfigError, "`--output recipe.txt` is not the name of a recipe.*ends with .yaml"),
    ],
)
def test_what_does_not_go(write, options, error, message):
    with pytest.raises(error, match=message):
        write(**options)
    assert not Path("recipe.yaml").exists()


def test_nothing_is_overwritten(write):
    before = write().read_text()
    with pytest.raises(ConfigError, match="recipe.yaml exists already. Name another file with `--output`"):
        write(stage=3)
    assert Path("recipe.yaml").read_text() == before


@pytest.mark.parametrize(
    ("name", "stage", "gpus", "memory", "teacher", "way"),
    [
        ("Qwen2-VL-7B", 3, 8, 80, None, "none"),
        ("Qwen2-VL-7B", 2, 1, 40, None, "lora"),
        ("Qwen2-VL-7B", 3, 1, 24, None, "qlora"),
        ("Qwen2.5-VL-3B", 2, 1, 24, None, "lora"),
        ("SmolVLM-256M", 3, 1, 8, None, "none"),
        ("Qwen2-VL-2B", 2, 1, 24, None, "none"),
        ("Qwen2-VL-2B", 2, 1, 40, "Qwen2-VL-7B", "none"),
        ("Qwen2-VL-2B", 2, 1, 24, "Qwen2-VL-7B", "qlora"),
    ],
)
def test_what_fits_real_models(name, stage, gpus, memory, teacher, way):
    values = {"use_kl": stage == 2, "trainable_parts": init.PARTS[stage], "max_length": 2048}
    if teacher:
        values |= {"teacher": "model", "teacher_model_name_or_path": teacher}
    settings = PumaKLConfig("x", use_cpu=True, bf16=False, **values)
    choice = choose(read_config(name), name, settings, gpus, memory, ADAPTERS, teacher and read_config(teacher))
    assert choice.adapters == way and choice.size <= 0.95 * memory
