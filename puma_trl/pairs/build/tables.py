"""Tables of LaTeX → pieces with their places: columns as wide as their cells, rows as high, rules between."""

from collections.abc import Callable
from typing import Any

from .metrics import Metrics
from .pieces import Laid, rule, upright
from .tree import Cell, Table


def lay_table(metrics: Metrics, table: Table, lay: Callable[[Any], Laid]) -> Laid:
    """Lays a table out, with its middle on the axis; `lay` lays the trees of its cells out."""
    placed = _place_cells(table, lay)
    edges = _column_edges(metrics, table, placed)
    lined = bool(table.bars or table.rules)
    pad = metrics.em(0.22) if lined else max(1, metrics.em(0.08))
    count = len(table.rows)
    ascents, descents = [metrics.em(0.75)] * count, [metrics.em(0.25)] * count
    for row, _, cell, laid in placed:
        if cell.rows == 1:
            ascents[row], descents[row] = max(ascents[row], laid.ascent), max(descents[row], laid.descent)
    tops, y = [], 0
    for ascent, descent in zip(ascents, descents, strict=True):
        tops.append(y)
        y += ascent + descent + 2 * pad
    tops.append(y)
    pieces = []
    for row, column, cell, laid in placed:
        start, end = edges[column][0], edges[min(column + cell.columns, len(edges)) - 1][1]
        align = cell.align or table.aligns[column]
        x = start + {"l": 0, "c": (end - start - laid.width) // 2, "r": end - start - laid.width}[align]
        base = tops[row] + pad + ascents[row]
        if cell.rows > 1:
            last = min(row + cell.rows, count)
            base = (tops[row] + tops[last] + laid.ascent - laid.descent) // 2
        pieces += laid.moved(x, base)
    width = edges[-1][1] + (_half(metrics, table, len(edges) - 1) if lined else 0)
    pieces += _lines(metrics, table, edges, tops, width, placed)
    up = y // 2 + metrics.axis
    return Laid(Laid(tuple(pieces), 0, 0, 0).moved(0, -up), width, up, y - up)


def _place_cells(table: Table, lay: Callable[[Any], Laid]) -> list[tuple[int, int, Cell, Laid]]:
    """Returns row, first column, cell, and its pieces."""
    placed = []
    for row, cells in enumerate(table.rows):
        column = 0
        for cell in cells:
            placed.append((row, column, cell, lay(cell.body)))
            column += cell.columns
    return placed


def _half(metrics: Metrics, table: Table, boundary: int) -> int:
    """Half of the room between a column and the next."""
    return metrics.em((table.gaps[boundary] if boundary < len(table.gaps) else 1.0) / 2)


def _column_edges(metrics: Metrics, table: Table, placed: list[tuple[int, int, Cell, Laid]]) -> list[tuple[int, int]]:
    """Returns where each column starts and ends."""
    widths = [0] * len(table.aligns)
    for _, column, cell, laid in placed:
        if cell.columns == 1:
            widths[column] = max(widths[column], laid.width)
    gaps = [metrics.em(gap) for gap in table.gaps]
    for _, column, cell, laid in placed:
        if cell.columns > 1:
            last = min(column + cell.columns, len(widths)) - 1
            room = sum(widths[column : last + 1]) + sum(gaps[column:last])
            widths[last] += max(0, laid.width - room)
    lined = bool(table.bars or table.rules)
    edges, x = [], _half(metrics, table, 0) if lined else 0
    for column, width in enumerate(widths):
        edges.append((x, x + width))
        x += width + (gaps[column] if column < len(gaps) else 0)
    return edges


def _lines(
    metrics: Metrics,
    table: Table,
    edges: list[tuple[int, int]],
    tops: list[int],
    width: int,
    placed: list[tuple[int, int, Cell, Laid]],
) -> list:
    """Returns the rules between rows and columns; none goes through a cell of several columns."""
    thick = metrics.line
    bounds = [0, *((end + start) // 2 for (_, end), (start, _) in zip(edges, edges[1:], strict=False)), width]
    pieces = []
    for row, first, last in table.rules:
        row = min(row, len(tops) - 1)
        pieces.append(rule(bounds[first], tops[row] - thick // 2, bounds[last] - bounds[first] + thick, thick))
    inside = {(row, column + step) for row, column, cell, _ in placed for step in range(1, cell.columns)}
    for bar in sorted(table.bars):
        x = bounds[min(bar, len(bounds) - 1)]
        for row in range(len(tops) - 1):
            if (row, bar) not in inside:
                pieces.append(upright(x, tops[row] - thick // 2, tops[row + 1] + thick - thick // 2, thick))
    return pieces
