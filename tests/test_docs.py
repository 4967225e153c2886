"""What the pages say is there: files, links, tests, and the names of settings."""

import re
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What commands in the pages would write, or take from the user
MADE = ("outputs/", "models/")


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_are_run(page):
    for name in set(re.findall(r"python -m (puma_trl[\w.]*)", page.read_text(encoding="utf-8"))):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_nothing_of_this_machine():
    """No page or file names a folder of a machine that it was written on."""
    found = subprocess.run(
        ["git", "grep", "-nE", r"(^|[^\w])/(work|tmp/w|tmp/base)/"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert [line for line in found.splitlines() if "test_docs.py" not in line] == []
