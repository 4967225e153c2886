"""Environments of LaTeX: matrices, cases, aligned rows, arrays and tables, as trees."""

import re
from typing import Any

from .tree import CannotDraw, Cell, Fenced, Row, Space, Table


FENCES_OF = {
    "matrix": ("", ""),
    "smallmatrix": ("", ""),
    "pmatrix": ("(", ")"),
    "bmatrix": ("[", "]"),
    "Bmatrix": ("{", "}"),
    "vmatrix": ("|", "|"),
    "Vmatrix": ("‖", "‖"),
    "cases": ("{", ""),
    "dcases": ("{", ""),
    "rcases": ("", "}"),
}
ALIGNED = "aligned align alignedat alignat split flalign eqnarray".split()
CENTRED = "gathered gather multline equation displaymath math subequations".split()
TABLES = "array tabular tabularx longtable subarray".split()
RULES = ("hline", "toprule", "midrule", "bottomrule", "cline", "cmidrule", "hdashline")
SPEC = re.compile(r"\*\{(\d+)\}\{([^{}]*)\}")


def read_environment(parser: Any, name: str) -> Any:
    """
    Reads an environment from behind its `\\begin{…}` to behind its `\\end{…}`.

    Raises:
        CannotDraw: if it is not known or not closed.
    """
    base = name.rstrip("*")
    spec = ""
    if base in ("tabularx", "tabular") and (base == "tabularx" or name.endswith("*")):
        parser.raw()  # the width
    if base in TABLES:
        parser.option()
        spec = parser.raw()
    elif base in ("alignedat", "alignat"):
        parser.raw()
    elif base in FENCES_OF or base in ALIGNED or base in CENTRED:
        if name.endswith("*") or base in ("aligned", "gathered"):
            parser.option()
    else:
        raise CannotDraw(f"environment {name}")
    kept = parser.text, parser.face, parser.loose
    parser.text, parser.face, parser.loose = base in TABLES and base not in ("array", "subarray"), "", False
    rows, rules = read_cells(parser)
    parser.text, parser.face, parser.loose = kept
    if parser.take() != "end":
        raise CannotDraw(f"\\begin{{{name}}} without \\end")
    if parser.raw() != name:
        raise CannotDraw(f"\\begin{{{name}}} with another \\end")
    if base in TABLES:
        return _lined_table(rows, rules, spec)
    if base in FENCES_OF:
        align = "l" if "cases" in base else "c"
        return _fence(FENCES_OF[base], _even_table(rows, align, 1.0))
    if base in CENTRED and all(len(row) == 1 for row in rows):
        return rows[0][0].body if len(rows) == 1 else _even_table(rows, "c", 1.0)
    return align_rows(rows, rules)


def read_cells(parser: Any) -> tuple[list[list[Cell]], list[tuple[int, int, int]]]:
    """Reads rows of cells up to the end of the environment or of the source; returns them with their level rules."""
    rows: list[list[Cell]] = [[]]
    rules: list[tuple[int, int, int]] = []
    while True:
        parser.skip()
        name = parser.peek()
        if name in RULES:
            parser.take()
            first, last = 0, -1
            if name in ("cline", "cmidrule"):
                parser.option()
                ends = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", parser.raw())
                if ends is None:
                    raise CannotDraw(f"\\{name} without columns")
                first, last = int(ends[1]) - 1, int(ends[2])
            rules.append((len(rows) - 1, first, last))
            continue
        rows[-1].append(_read_cell(parser))
        character = parser.source[parser.position : parser.position + 1]
        if character == "&":
            parser.position += 1
        elif parser.peek() in ("\\", "cr", "tabularnewline"):
            parser.take()
            if re.compile(r"\s*\[\s*[\d.-]+\s*[a-z]{2}\s*\]").match(parser.source, parser.position):
                parser.option()
            rows.append([])
        else:
            break
    if len(rows) > 1 and rows[-1] == [Cell(Row())]:
        rows.pop()
    return rows, rules


def _read_cell(parser: Any) -> Cell:
    name = parser.peek()
    if name == "multicolumn":
        parser.take()
        span, align = parser.raw(), re.sub(r"[^lcr]", "", parser.raw())
        inner = _read_cell_of(parser)
        parser.skip()
        if not span.strip().isdecimal():
            raise CannotDraw("\\multicolumn without a number")
        return Cell(inner.body, int(span), inner.rows, align[:1] or "c")
    if name == "multirow":
        parser.take()
        parser.option()
        span = parser.raw()
        parser.option()
        match = re.compile(r"\s*\*").match(parser.source, parser.position)
        if match:
            parser.position = match.end()
        else:
            parser.raw()
        body = parser.argument()
        parser.skip()
        if not span.strip().isdecimal():
            raise CannotDraw("\\multirow without a number")
        return Cell(body, 1, int(span))
    return Cell(_trim(parser.row(ends="")) if parser.text else parser.row(ends=""))


def _read_cell_of(parser: Any) -> Cell:
    """Reads the argument of a `\\multicolumn`, which may be a `\\multirow`."""
    parser.skip()
    parser.expect("{")
    cell = _read_cell(parser) if parser.peek() == "multirow" else Cell(_trim(parser.row()))
    parser.expect("}")
    return cell


def _trim(row: Row) -> Row:
    items = list(row.items)
    while items and isinstance(items[-1], Space) and not items[-1].ruled:
        items.pop()
    return Row(tuple(items))


def _width(rows: list[list[Cell]]) -> int:
    return max(sum(cell.columns for cell in row) for row in rows)


def _even_table(rows: list[list[Cell]], align: str, gap: float) -> Table:
    columns = _width(rows)
    return Table(tuple(map(tuple, rows)), align * columns, (gap,) * (columns - 1))


def _fence(fences: tuple[str, str], table: Table) -> Any:
    return Fenced(fences[0], table, fences[1]) if any(fences) else table


def align_rows(rows: list[list[Cell]], rules: list[tuple[int, int, int]]) -> Table:
    """Returns rows whose columns come in pairs that meet, as `aligned` has them."""
    columns = _width(rows)
    if columns == 1:
        return _even_table(rows, "c" if len(rows) > 1 else "l", 0.0)
    aligns = ("rl" * columns)[:columns]
    gaps = tuple(0.2 if index % 2 == 0 else 2.0 for index in range(columns - 1))
    return Table(tuple(map(tuple, rows)), aligns, gaps, rules=_full(rules, columns))


def _full(rules: list[tuple[int, int, int]], columns: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((row, first, columns if last < 0 else min(last, columns)) for row, first, last in rules)


def _lined_table(rows: list[list[Cell]], rules: list[tuple[int, int, int]], spec: str) -> Table:
    """Returns the table of an `array` or a `tabular`, with the columns that it names."""
    while match := SPEC.search(spec):
        spec = spec[: match.start()] + match[2] * int(match[1]) + spec[match.end() :]
    spec = re.sub(r"[pmbX](?:\{[^{}]*\})?", "l", re.sub(r"[@!><]\{[^{}]*\}", "", spec))
    aligns, bars = "", set()
    for character in spec:
        if character == "|":
            bars.add(len(aligns))
        elif character in "lcr":
            aligns += character
        elif not character.isspace():
            raise CannotDraw(f"a column '{character}' of a table")
    columns = max(len(aligns), _width(rows))
    aligns = aligns.ljust(columns, "c")
    gaps = (1.0,) * (columns - 1)
    return Table(tuple(map(tuple, rows)), aligns, gaps, frozenset(bars), _full(rules, columns))
