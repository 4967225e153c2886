"""The house: what may import what, how long files and functions may be, and which modules stand at the top."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "puma_trl"
# From bottom to top: a module imports from its own room, its own line and the lines above it here. Imports inside of
# functions and those for type checkers count as well.
LINE = (
    (
        "errors",
        "process",
        "redact",
        "entry",
        "files",
        "fields",
        "best",
        "checks",
        "on_policy_config",
        "vllm_config",
        "config",
        "recipe",
    ),
    ("models",),
    ("data",),
    ("step",),
    ("record",),
    ("train",),
    ("evaluation",),
    ("checkpoints",),
    ("pairs",),
    ("mini", "run", "start"),
    ("study",),
    # names and commands of what is below, imported by nobody
    ("__init__", "assemble", "cli", "convert", "hub", "merge"),
)
RANKS = {room: rank for rank, rooms in enumerate(LINE) for room in rooms}
MAX_LINES, MAX_FUNCTION = 400, 60
TEXTS = (".py", ".html", ".css", ".js", ".md", ".json")


def modules(package: Path) -> dict[str, Path]:
    """Returns module → file of a package, the names relative to it and `__init__` for a package's own module."""
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in sorted(package.rglob("*.py"))}


def place(package: Path, path: Path, line: int) -> str:
    """Returns how a message begins."""
    return f"{path.relative_to(package.parent)}:{line}:"


def imports(name: str, path: Path, known: dict[str, Path], package: str) -> Iterator[tuple[str, int]]:
    """Yields each module of the package that a module imports, and the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = [package, *name.split(".")]
            start = here[: len(here) - node.level] if node.level else []
            targets = [".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        for target in targets:
            first, *parts = target.split(".")
            if first == package:
                # the longest beginning that is a module: the last part may be a name in it
                starts = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
                candidates = [candidate for start in starts for candidate in (start, f"{start}.__init__")]
                yield next(candidate for candidate in [*candidates, "__init__"] if candidate in known), node.lineno


def upward_imports(package: Path) -> list[str]:
    """Returns the imports that go up the line."""
    known = modules(package)
    return [
        f"{place(package, path, line)} `{room}` imports `{target}`, which stands above it in the line"
        for name, path in known.items()
        if (room := name.split(".")[0]) in RANKS
        for target, line in dict.fromkeys(imports(name, path, known, package.name))
        if RANKS.get(target.split(".")[0], 0) > RANKS[room]
    ]


def cycles(package: Path) -> list[str]:
    """Returns the imports that close a cycle of modules, each with the way back."""
    known = modules(package)
    graph = {name: dict(imports(name, path, known, package.name)) for name, path in known.items()}
    found, finished = [], set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            cycle = [*way[way.index(name) :], name]
            path, line = known[cycle[-2]], graph[cycle[-2]][name]
            found.append(f"{place(package, path, line)} import cycle: {' → '.join(cycle)}")
        elif name not in finished:
            for target in graph[name]:
                visit(target, [*way, name])
            finished.add(name)

    for name in graph:
        visit(name, [])
    return found


def strangers(package: Path) -> list[str]:
    """Returns the modules and packages at the top level that are not in the tree."""
    tops = {name.split(".")[0]: path for name, path in modules(package).items()}
    return [
        f"{place(package, path, 1)} `{top}` is no room of the house; its top level has {', '.join(RANKS)}"
        for top, path in tops.items()
        if top not in RANKS
    ]


def long_files(package: Path) -> list[str]:
    """Returns the files, templates included, of more than `MAX_LINES` lines."""
    texts = [path for path in sorted(package.rglob("*")) if path.suffix in TEXTS]
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in texts}
    return [
        f"{place(package, path, MAX_LINES + 1)} the file has {count} lines, but may have {MAX_LINES}"
        for path, count in counts.items()
        if count > MAX_LINES
    ]


def lines_of_code(source: str) -> set[int]:
    """Returns the numbers of the lines that hold more than comments and docstrings."""
    passed = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in passed:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        has_docstring = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
        if isinstance(node, has_docstring) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def long_functions(package: Path) -> list[str]:
    """Returns the functions of more than `MAX_FUNCTION` lines of code, from `def` to the last line."""
    found = []
    for path in modules(package).values():
        source = path.read_text(encoding="utf-8")
        code = lines_of_code(source)
        for node in ast.walk(ast.parse(source, path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = len(code & set(range(node.lineno, node.end_lineno + 1)))
                if count > MAX_FUNCTION:
                    found.append(
                        f"{place(package, path, node.lineno)} `{node.name}` has {count} lines of code, but "
                        f"a function has at most {MAX_FUNCTION}"
                    )
    return found


RULES = (upward_imports, cycles, strangers, long_files, long_functions)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house(rule):
    found = rule(PACKAGE)
    assert not found, "\n" + "\n".join(found)


BREACHES = {
    "upward_imports": {
        "models/load.py": "from ..data import rows\n",
        "step/losses.py": "def train():\n    from puma_trl.train.trainer import Trainer\n    Trainer()\n",
        "record/hub.py": "from .. import PumaKLTrainer\n",
        "errors.py": "import puma_trl.files, puma_trl.pairs.build\n",
    },
    "cycles": {
        "pairs/a.py": "from .b import x\nfrom .c import y\n",
        "pairs/b.py": "from . import a\n",
        "pairs/c.py": "def f():\n    from . import __main__\n",
        "pairs/__main__.py": "from .c import f\n",
    },
    "strangers": {"losses.py": "", "tools/command.py": ""},
    "long_files": {"step/losses.py": 401 * "\n", "record/templates/card.md": 401 * "\n"},
    "long_functions": {"data/load.py": "class Loader:\n    async def load(self):\n" + 60 * "        print()\n"},
}
ALLOWED = {
    "__init__.py": "",
    "errors.py": 400 * "\n",
    "config.py": "from .errors import PumaError\n",
    "models/__init__.py": "",
    "models/load.py": "import puma_trl.config, torch.nn\nfrom .parts import name\nfrom ..files import whole_file\n",
    "models/parts.py": 'def f():\n    """A\n\n    text."""\n' + 59 * "    print(1)  # why\n    # more\n\n",
    "data/rows.py": "from ..models import load, parts\n",
    "train/trainer.py": "",
    "pairs/build/__init__.py": "",
    "data/__init__.py": "",
    "files.py": "",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule, tmp_path):
    """Every breach is found, with its file, and nothing else."""
    package = tmp_path / "puma_trl"

    def write(files):
        for name, text in files.items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_text(text)

    write(ALLOWED)
    assert rule(package) == []
    breaches = BREACHES[rule.__name__]
    write(breaches)
    found = rule(package)
    places = {message.split(":")[0].removeprefix("puma_trl/") for message in found}
    if rule is cycles:
        assert len(found) == 2 and "a → pairs.b → pairs.a" in found[0] + found[1]
    else:
        assert places == set(breaches) and len(found) == len(breaches)
