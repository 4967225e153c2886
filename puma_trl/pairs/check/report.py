"""What `check` found: as one page for a person, and as a json file with every row."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...data.files import Source
from ...data.texts import shorten
from ...files import whole_file
from .content import word_ties


ERROR, WARNING, NOTE = "error", "warning", "note"
STYLES = {ERROR: "bold red", WARNING: "bold yellow", NOTE: "bold cyan"}

EXAMPLES_SHOWN = 2
EXAMPLES_KEPT = 1_000  # of each kind, in the json file; the positions of all rows are kept

BINS = 10
BAR = 20  # characters


@dataclass
class Finding:
    """
    All rows with the same finding.

    Args:
        kind (`str`):
            Its name.
        level (`str`):
            `"error"`, `"warning"` or `"note"`.
        meaning (`str`):
            What is wrong.
        remedy (`str`):
            What to do.
        rows (`dict[str, list[int]]`):
            File → positions of the rows.
        examples (`list[tuple[str, str]]`):
            Row id and details of the first rows.
    """

    kind: str
    level: str
    meaning: str
    remedy: str
    rows: dict[str, list[int]] = field(default_factory=dict)
    examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(len(rows) for rows in self.rows.values())

    def add(self, source: Source, index: int, detail: str) -> None:
        """Adds a row; one that the finding already has is not counted again."""
        rows = self.rows.setdefault(source.name, [])
        if rows and rows[-1] == index:
            return
        rows.append(index)
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append((source.row_id(index), detail))


@dataclass
class Report:
    """
    The result of a check.

    Args:
        data (`list[str]`):
            Names of the data.
        model (`str`, *optional*):
            Name of the model that counted tokens.
        unit (`str`):
            Unit of the lengths.
        rows_read, rows_usable, pairs, pictures, different_pictures (`int`):
            Numbers of rows, of those that training takes, of pairs among them, and of their pictures.
        compared (`dict[str, int]`):
            `"eval data"` or `"benchmark"` → rows that the data was compared with.
        tied_by (`list[str]`):
            Columns that number problems in the rows and in the eval data, which were compared by them too.
        lengths (`dict[str, np.ndarray]`):
            Side → lengths of prompt and answer.
        findings (`list[Finding]`):
            Errors, warnings, notes; the most frequent first.
        forms (`dict[str, list[str]]`):
            Words for a form of rows → the files that have it.
        unread (`list[str]`):
            Columns that are not read.
        clean (`Path`, *optional*):
            File of the rows without errors and warnings.
        clean_rows (`int`):
            Their number.
    """

    data: list[str]
    model: str | None
    unit: str
    rows_read: int = 0
    rows_usable: int = 0
    pairs: int = 0
    pictures: int = 0
    different_pictures: int = 0
    compared: dict[str, int] = field(default_factory=dict)
    tied_by: list[str] = field(default_factory=list)
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    forms: dict[str, list[str]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    clean: Path | None = None
    clean_rows: int = 0

    @property
    def has_errors(self) -> bool:
        """Whether there is an error; warnings and notes are none."""
        return any(finding.level == ERROR for finding in self.findings)


def describe_forms(sources: list[Source]) -> dict[str, list[str]]:
    """
    Says how rows are read: our columns, each with the data's where that has another name.

    Returns:
        `dict[str, list[str]]`: words for a form → names of its sources.
    """
    forms: dict[str, list[str]] = {}
    for source in sources:
        columns = []
        for name, paths in source.form.fields.items():
            found = [".".join(path) for path in paths if path[0] in source.form.seen]
            link = " and " if name in source.form.mapped else " or "
            columns += [name if found == [name] else f"{name} from {link.join(found)}"] if found else []
        forms.setdefault(", ".join(columns), []).append(source.name)
    return forms


def print_report(report: Report, output: Path | None) -> None:
    """Prints the page; `output` is where all rows are listed."""
    console = Console(highlight=False)
    console.print(f"\n[bold]{escape(shorten(', '.join(report.data), 200))}[/bold]")
    console.print(
        f"{report.rows_read:,} rows, {report.rows_usable:,} of them usable: {report.pairs:,} pairs and "
        f"{report.rows_usable - report.pairs:,} rows with one side; {report.pictures:,} pictures, "
        f"{report.different_pictures:,} different ones"
    )
    for form, files in report.forms.items():
        where = f" ({shorten(', '.join(files), 100)})" if len(report.forms) > 1 else ""
        console.print(escape(f"Columns: {form}{where}"))
    if report.compared:
        compared = " and ".join(f"{count:,} rows of the {where}" for where, count in report.compared.items())
        console.print(f"Compared with {compared}" + f", by {word_ties(report.tied_by)} too" * bool(report.tied_by))
    console.print(_verdict(report))
    for finding in report.findings:
        _print_finding(console, finding, report.rows_read, output)
    if report.unread:
        names = escape(", ".join(report.unread))
        console.print(f"\n[{STYLES[NOTE]}]{NOTE.upper():8}[/][bold]columns not read[/bold]: {names}")
    console.print()
    _print_lengths(console, report)
    if report.clean is not None:
        left_out = report.rows_read - report.clean_rows
        console.print(
            f"\n{report.clean_rows:,} rows without errors and warnings, {left_out:,} left out: "
            f"{escape(str(report.clean))}"
        )
    if output is not None:
        console.print(f"\nAll rows: {escape(str(output))}")


def _verdict(report: Report) -> str:
    levels = [finding.level for finding in report.findings]
    counts = [f"{levels.count(level)} kind{'s' * (levels.count(level) != 1)} of {level}" for level in STYLES]
    found = ", ".join(text for level, text in zip(STYLES, counts, strict=True) if level in levels)
    if not levels or set(levels) == {NOTE}:
        return f"[bold green]Clean: no errors, no warnings[/bold green]{f' ({found})' if found else ''}"
    return f"[{STYLES[ERROR if report.has_errors else WARNING]}]Found: {found}[/]"


def _print_finding(console: Console, finding: Finding, total: int, output: Path | None) -> None:
    style = STYLES[finding.level]
    count = finding.count
    console.print(
        f"\n[{style}]{finding.level.upper():8}[/][bold]{escape(finding.kind)}[/bold]: {count:,} "
        f"row{'s' * (count != 1)} ({_share(count, total)})"
    )
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=7)
    grid.add_column(overflow="fold")
    grid.add_row("", f"{escape(finding.meaning)} [italic]{escape(finding.remedy)}[/italic]")
    for row_id, detail in finding.examples[:EXAMPLES_SHOWN]:
        grid.add_row("", f"[dim]{escape(row_id)}[/dim] {escape(shorten(' '.join(detail.split()), 200))}")
    if count > EXAMPLES_SHOWN:
        where = "" if output is not None else "; `--output report.json` lists all"
        grid.add_row("", f"[dim]… {count - EXAMPLES_SHOWN:,} more{where}[/dim]")
    console.print(grid)


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if count >= total / 1000 else "< 0.1%"


def _print_lengths(console: Console, report: Report) -> None:
    lengths = {side: values for side, values in report.lengths.items() if len(values)}
    if not lengths:
        return
    edges = bin_edges(np.concatenate(list(lengths.values())))
    of = f" of {report.model}" if report.model else ""
    table = Table(title=f"Length of prompt and answer in {report.unit}{escape(of)}", title_justify="left", box=None)
    table.add_column("", justify="right")
    for side in lengths:
        table.add_column(side)
    counts = {side: np.histogram(values, [*edges, np.inf])[0] for side, values in lengths.items()}
    largest = max(count.max() for count in counts.values())
    for position, start in enumerate(edges):
        end = f"–{edges[position + 1] - 1:,}" if position + 1 < len(edges) else " and more"
        bars = [_bar(int(count[position]), int(largest)) for count in counts.values()]
        table.add_row(f"{start:,}{end}", *bars)
    for title, share in (("median", 0.5), ("99 %", 0.99), ("longest", 1.0)):
        values = [f"{np.quantile(values, share, method='nearest'):,}" for values in lengths.values()]
        table.add_row(f"[bold]{title}[/bold]", *values)
    console.print(table)


def _bar(count: int, largest: int) -> str:
    if not count:
        return ""
    return f"[blue]{'█' * round(BAR * count / largest) or '▏'}[/blue] {count:,}"


def bin_edges(values: np.ndarray) -> list[int]:
    """
    Returns the starts of at most about ten bins of a round width; the last one is open and takes the longest percent.
    """
    low, high = int(values.min()), int(np.quantile(values, 0.99))
    width = next(
        step * 10**power for power in range(12) for step in (1, 2, 5) if (high - low) / (step * 10**power) <= BINS - 1
    )
    return list(range(low // width * width, high + 1, width))


def write_report(report: Report, path: Path) -> None:
    """Writes the json file: numbers, lengths, and every finding with the positions of all its rows."""
    content: dict[str, Any] = {
        name: getattr(report, name)
        for name in (
            "data",
            "model",
            "rows_read",
            "rows_usable",
            "pairs",
            "pictures",
            "different_pictures",
            "compared",
            "tied_by",
            "forms",
            "unread",
        )
    }
    content["lengths"] = {"unit": report.unit} | {
        side: _describe_lengths(values) for side, values in report.lengths.items() if len(values)
    }
    content["findings"] = [
        {
            "kind": finding.kind,
            "level": finding.level,
            "count": finding.count,
            "meaning": finding.meaning,
            "remedy": finding.remedy,
            "examples": [{"row": row_id, "detail": detail} for row_id, detail in finding.examples],
            "rows": finding.rows,
        }
        for finding in report.findings
    ]
    with whole_file(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _describe_lengths(values: np.ndarray) -> dict[str, Any]:
    edges = bin_edges(values)
    counts = np.histogram(values, [*edges, np.inf])[0]
    return {
        "shortest": int(values.min()),
        "median": int(np.median(values)),
        "longest": int(values.max()),
        "histogram": [{"from": start, "rows": int(count)} for start, count in zip(edges, counts, strict=True)],
    }
