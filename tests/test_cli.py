"""`puma-trl`: one page, one line for what is not known, and each command's own parser behind its name."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import puma_trl
from puma_trl.cli import COMMANDS, describe, find_command, main
from puma_trl.errors import ConfigError


ROOT = Path(__file__).parents[1]


def run_python(*argv):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *argv], env=environment, capture_output=True, text=True, timeout=60)


def test_the_page_fits_a_screen(capsys):
    assert main(["--help"]) is None and main([]) is None
    page = capsys.readouterr().out
    assert page == 2 * describe()
    lines = describe().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    named = [line.split()[0] for line in lines if line.startswith("  ")]
    assert named == list(COMMANDS)


def test_the_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"puma_trl {puma_trl.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        *([name, "--help"] for name in ("pairs", "eval", "init", "push", "merge", "convert", "assemble")),
    ],
)
def test_pages_do_not_wait_for_torch(argv):
    code = (
        "import contextlib, sys\nfrom puma_trl.cli import main\n"
        f"with contextlib.suppress(SystemExit):\n    main({argv!r})\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'datasets', 'numpy') if name in sys.modules])"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "usage: puma-trl" in done.stdout and done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("name", "near"), [("trian", "train"), ("evaluate", "eval"), ("checks", "check")])
def test_unknown_commands(name, near):
    with pytest.raises(ConfigError, match=f"Unknown command `{name}`. Did you mean `puma-trl {near or ''}") as error:
        main([name, "--help"])
    assert "\n" not in str(error.value)


def test_nothing_is_guessed_where_nothing_is_near():
    with pytest.raises(ConfigError, match="^Unknown command `7`. `puma-trl --help` lists all.$"):
        main(["7"])


def test_help_is_a_command_too(capsys):
    main(["help"])
    assert capsys.readouterr().out == describe()
    with pytest.raises(SystemExit):
        main(["help", "mini"])
    assert capsys.readouterr().out.startswith("usage: puma-trl mini ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pairs", "genrate"], "Unknown command `genrate`. Did you mean `puma-trl pairs generate`? "),
        (["pairs"], "Name a command. `puma-trl pairs --help` lists all."),
        (["pairs", "generate", "--m", "3"], "Unknown option `--m`. "),
        (["pairs", "generate"], "`--n` and `--output` must be given. `puma-trl pairs generate --help` lists all op"),
        (["pairs", "generate", "--n", "x"], "`--n`: invalid int value: 'x'. `puma-trl pairs generate --help`"),
        (["eval", "gap", "--modl", "a"], "Unknown option `--modl`. Did you mean `--model`? `puma-trl eval gap --help"),
        (["eval", "gap", "b", "--model", "a", "--data", "c"], "`b` has no place on the command line. "),
        (["eval", "run", "--benchmark", "mathvers"], "`--benchmark mathvers`: Did you mean `mathverse`? It takes one"),
        (["eval", "gap", "--model"], "`--model`: expected at least one argument. "),
        (["push", "--repo-id", "a"], "Unknown option `--repo-id`. Did you mean `--repo_id`? "),
        (["init", "--stage", "5"], "`--stage 5`: It takes one of 1, 2, 3."),
    ],
)
def test_errors_of_the_command_line_are_one_line(argv, message):
    with pytest.raises(ConfigError) as error:
        main(argv)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Name a recipe: `puma-trl train recipe.yaml`."),
        (["--dry_run", "true"], "Name a recipe: `puma-trl train recipe.yaml`."),
        (["recipes/mini"], "`recipes/mini` is not a recipe (.yaml). Did you mean `recipes/mini/stage1.yaml` or `rec"),
        (
            ["recipes/mini/stage1"],
            "`recipes/mini/stage1` is not a recipe (.yaml). Did you mean `recipes/mini/stage1.y",
        ),
        (["mini"], "`mini` is not a recipe (.yaml). Did you mean `recipes/mini/stage1.yaml` or "),
        (["x.jsonl"], "`x.jsonl` is not a recipe (.yaml). Check the path and the current folder; `puma-trl init` "),
        (["recipes/mini/stgae1.yaml"], "No such recipe: recipes/mini/stgae1.yaml. Did you mean `recipes/mini/stage1."),
        (["nime.yaml"], "No such recipe: nime.yaml. Did you mean `mine.yaml`?"),
    ],
)
def test_a_run_needs_a_recipe(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    with pytest.raises(ConfigError) as error:
        main(["train", *argv])
    assert str(error.value).startswith(message)


def test_an_unknown_command_is_one_line_and_code_2():
    done = run_python("-m", "puma_trl.cli", "trian", "recipe.yaml")
    line = "error: Unknown command `trian`. Did you mean `puma-trl train`? `puma-trl --help` lists all.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_parser_of_its_own(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert not end.value.code
    usage = {"check": "puma-trl pairs check"}.get(name, f"puma-trl {name}")
    assert capsys.readouterr().out.startswith(f"usage: {usage} ")


def test_what_stands_behind_a_command_is_passed_on(monkeypatch):
    for name, (module, before, _) in COMMANDS.items():
        function = import_module(f"puma_trl.{module}").main
        with monkeypatch.context() as patch:
            patch.setattr(f"puma_trl.{module}.main", lambda argv: (3, argv))
            assert find_command(name)(["a", "--b=c"]) == (3, [*before, "a", "--b=c"])
        assert import_module(f"puma_trl.{module}").main is function


def test_keys_of_the_method_come_first(capsys):
    pages = []
    for argv in (["--help"], ["--help", "all"]):
        with pytest.raises(SystemExit):
            main(["train", *argv])
        pages.append(capsys.readouterr().out)
    keys = [[line.split()[0] for line in page.splitlines() if line.startswith("  --")] for page in pages]
    assert keys[0][:4] == ["--use_kl", "--alpha_kl", "--lambda_kl", "--temp_kl"] and "--dry_run" in keys[0]
    assert "--learning_rate" not in keys[0] and "--help all" in pages[0]
    assert keys[1][: len(keys[0])] == keys[0]
    assert {"--learning_rate", "--lora_r", "--model_name_or_path", "--output_dir"} <= set(keys[1])
    assert len(keys[1]) == len(set(keys[1]))
    assert "  --alpha_kl 0.5 " in pages[0] and "One of live, frozen, ema, model." in " ".join(pages[0].split())


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["mini", "--n", "0"], ConfigError, "`--n` is 0; it must be 1 or more"),
        (["mini", "--output_dir", "some.jsonl"], NotADirectoryError, "'some.jsonl' is a file, and a folder is needed"),
        (["pairs", "generate", "--n", "-3", "--output", "x"], ConfigError, "`--n` is -3; it must be 0 or more"),
        (["pairs", "check", "some.jsonl", "--output", "report.json"], FileExistsError, "'report.json' is a folder"),
    ],
)
def test_what_is_written_is_looked_at_first(tmp_path, monkeypatch, argv, error, message):
    monkeypatch.chdir(tmp_path)
    Path("some.jsonl").touch()
    Path("report.json").mkdir()
    with pytest.raises(error, match=message):
        main(argv)


def test_no_model_is_loaded_for_a_file_that_cannot_be(tmp_path, capsys):
    (tmp_path / "gap.json").mkdir()
    assert main(["eval", "gap", "--model", "none", "--data", "none", "--output", str(tmp_path / "gap.json")]) == 1
    assert "is a folder, and a file is to be written" in capsys.readouterr().err
