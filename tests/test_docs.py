"""What the pages say is there: files, links, tests, and the names of settings."""

import argparse
import functools
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset
from PIL import Image

import puma_trl
from puma_trl.cli import find_command
from puma_trl.config import PumaKLConfig
from puma_trl.recipe import parse_recipe
from puma_trl.start.shipped import find_engine, find_recipe
from puma_trl.start.train import take_engine


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What commands in the pages would write, or take from the user
MADE = ("outputs/", "models/")
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--tf32", "false"]
# What stands around commands, and commands of other software
AROUND, OTHERS = ("do", "then"), ("for", "done", "make", "pip", "git", "cd", "hf")


class Parsed(BaseException):
    """A command line was read; what would follow is left out."""


def blocks(language):
    """Returns (page, number of the line, text) of each block of code in the pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(rf"(?ms)^```{language}\n(.*?)^```$", text):
            found.append((page.name, text[: block.start()].count("\n") + 2, block[1]))
    return found


def commands():
    """Returns (page, words) of each command in the blocks of shell."""
    found = []
    for page, _, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            words = []
            for word in [*lexer, ";"]:
                if set(word) <= set(";&|"):
                    found.append((page, words))
                    words = []
                elif words or word not in AROUND:
                    words.append(word)
    return [(page, words) for page, words in found if words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_links(page):
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert all((page.parent / link).exists() for link in links), links
    folders = "recipes|accelerate_configs|puma_trl|tests|benchmarks|docs"
    paths = set(re.findall(rf"(?<![\w./-])(?:{folders})/[\w./-]*\w", text))
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_tests_that_are_named():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")))
    assert len(names) > 40
    assert [name for name in sorted(names) if f"def {name}(" not in sources] == []


def test_readme_is_a_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_tree_of_the_readme():
    """Every package and module of the tree is there, and every package is in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("puma_trl/\n  run.py") :].split("```")[0]
    named = set(re.findall(r"(?<!\S)(\w+/|\w+\.py)(?=\s)", tree))
    package = ROOT / "puma_trl"
    there = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in package.glob("*.py")} - {"__init__.py"}
    commands = {"assemble.py", "convert.py", "hub.py", "merge.py"}  # a line each, for commands of these names
    outside = {"puma_trl/", "recipes/", "accelerate_configs/", "benchmarks/", "docs/", "tests/"}
    assert named - outside == there - commands


def read_run(argv):
    """Reads the command line of a run, as on a machine with what it asks for."""
    _, argv = take_engine(argv)
    parse_recipe([str(find_recipe(argv[0])), *argv[1:], *ON_CPU])


def read_command(words, monkeypatch):
    """Reads a command as its own parser does; raises what that raises."""
    if words[:2] == ["accelerate", "launch"]:
        args = launch_command_parser().parse_args(words[2:])
        assert Path(args.config_file).is_file() and (Path(args.training_script).is_file() or args.module)
        return read_run(args.training_script_args)
    if words[:2] == ["puma-trl", "train"]:
        engine, _ = take_engine(words[2:])
        assert engine is None or find_engine(engine).is_file()
        return read_run(words[2:])
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        raise Parsed(parse(self, args, namespace))

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        if words[0] == "puma-trl":
            return find_command(words[1])(words[2:])
        assert words[:2] == ["python", "-m"] and words[2].startswith("puma_trl"), words
        patch.setattr(sys, "argv", words[2:])
        return runpy.run_module(words[2], run_name="__main__", alter_sys=False)


@pytest.mark.parametrize(("page", "words"), [each for each in commands() if each[1][0] not in OTHERS])
def test_commands_are_read(page, words, monkeypatch, tmp_path):
    """Every flag of every command exists, with a value that its parser takes, and so do the recipes and engines."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "first.yaml").write_text("model_name_or_path: a\ndataset_name: b\noutput_dir: c\n")
    words = [str(tmp_path / word) if word == "first.yaml" else word for word in words]  # which `init` writes
    read_command(words, monkeypatch)


def test_commands_of_make():
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    named = [words[1] for _, words in commands() if words[0] == "make"]
    assert named and set(named) <= targets


@pytest.mark.parametrize(("page", "line", "code"), blocks("python"))
def test_python_runs(page, line, code, monkeypatch, tmp_path, tiny_model, processor):
    """With what the text before it speaks of: a model with its processor, pairs, and a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    few = functools.partial(PumaKLConfig, use_cpu=True, bf16=False, max_steps=1, report_to="none", save_strategy="no")
    monkeypatch.setattr(puma_trl, "PumaKLConfig", few, raising=False)
    Image.new("RGB", (56, 56)).save("figure.png")
    row = {"instruction": "Is it 5?", "output": "It is.", "instruction_2": "Is it?", "output_2": "It is."}
    dataset = Dataset.from_list([row | {"image_url_2": str(tmp_path / "figure.png")}] * 4)
    names = {"__name__": page, "model": tiny_model(), "processor": processor, "dataset": dataset}
    exec(compile("\n" * (line - 1) + code, page, "exec"), names)


def test_nothing_of_this_machine():
    """No page or file names a folder of a machine that it was written on."""
    found = subprocess.run(
        ["git", "grep", "-nE", r"(^|[^\w])/(work|tmp/w|tmp/base)/"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert [line for line in found.splitlines() if "test_docs.py" not in line] == []
