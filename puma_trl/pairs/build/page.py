"""The page beside a build: counts, reasons, pairs picked by chance, the worst pairs; it loads nothing."""

import heapq
import html
from base64 import b64encode
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ...files import whole_file


PAGE = "report.html"
SHOWN = 10  # pairs of each kind
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .5em 0 } td { padding: .2em .8em .2em 0; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5em; border-top: 1px solid #ccc; padding: 1em 0 }
@media (max-width: 700px) { .pair { grid-template-columns: minmax(0, 1fr) } }
td, .words { overflow-wrap: anywhere } .words { white-space: pre-wrap }
.pair img { max-width: 100%; border: 1px solid #ddd }
h3 { margin: 0 0 .3em; font-size: 1em } small, .why { color: #666 } .why { grid-column: 1 / -1 }
"""


class Showcase:
    """
    The pairs of a chunk that the page may show: those that chance picks, and the worst.

    Args:
        seed (`int`):
            Seed of the choice, which depends on it and on the rows alone.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.chance: list[tuple[Any, ...]] = []
        self.worst: list[tuple[Any, ...]] = []

    def consider(self, row_id: str, row: dict[str, Any], content: bytes, size: tuple[int, int], failures: int) -> None:
        """
        Looks at a pair.

        Args:
            row_id (`str`):
                Where it is from.
            row (`dict[str, Any]`):
                The pair.
            content (`bytes`):
                Its picture.
            size (`tuple[int, int]`):
                Width and height of the picture.
            failures (`int`):
                How often it shows source.
        """
        name = f"{self.seed}/{row_id}/{row['kind']}"
        number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
        shown = (row, content, f"{size[0]} x {size[1]} pixels" + (", shows source" if failures else ""))
        _keep(self.chance, (-number, name, shown))
        _keep(self.worst, ((failures, size[0] * size[1]), name, shown))

    def to_json(self) -> dict[str, list[list[Any]]]:
        """Returns the pairs, to be written down with the counts of the chunk."""
        return {kind: [_pack(*entry) for entry in getattr(self, kind)] for kind in ("chance", "worst")}


def _keep(heap: list[tuple[Any, ...]], entry: tuple[Any, ...]) -> None:
    """Keeps the largest entries; names differ, so that nothing behind them is compared."""
    if len(heap) < SHOWN:
        heapq.heappush(heap, entry)
    elif entry[:2] > heap[0][:2]:
        heapq.heapreplace(heap, entry)


def _pack(rank: Any, name: str, shown: tuple[dict[str, Any], bytes, str]) -> list[Any]:
    row, content, about = shown
    texts = {key: row[key] for key in ("instruction", "instruction_2", "output_2")}
    rank = list(rank) if isinstance(rank, tuple) else rank  # as JSON has it
    return [rank, name, texts | {"picture": b64encode(content).decode(), "about": about}]


def join_showcases(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Returns the pairs of two showcases that one of both would have kept."""
    return {kind: sorted(first.get(kind, []) + second[kind], reverse=True)[:SHOWN] for kind in second}


def write_page(output: Path, lines: list[str], total: dict[str, Any], shown: dict[str, list[Any]]) -> None:
    """
    Writes the page.

    Args:
        output (`Path`):
            Folder of the build.
        lines (`list[str]`):
            What the command says of the build.
        total (`dict[str, Any]`):
            The counts of all chunks.
        shown (`dict[str, list]`):
            What [`join_showcases`] made of the pairs of all chunks.
    """
    first = total["first_dropped"]
    parts = [f"<p>{'<br>'.join(html.escape(line) for line in lines)}</p>"]
    tables = {"Rows that were left out": total["dropped"], "Levels that rows cannot have": total["skipped"]}
    for title, counts in tables.items():
        if counts:
            cells = "".join(_reason(reason, count, first.get(reason)) for reason, count in counts.items())
            parts.append(f"<h2>{title}</h2><table>{cells}</table>")
    if total["examples"]:
        found = "".join(
            f"<tr><td>{html.escape(row['row_id'])}</td><td><code>{html.escape(row['source'])}</code></td>"
            f"<td>{html.escape(row['reason'])}</td></tr>"
            for row in total["examples"]
        )
        parts.append(f"<h2>Source in pictures</h2><table>{found}</table>")
    titles = {"chance": "Pairs picked by chance", "worst": "The worst: source first, then the largest pictures"}
    for kind, title in titles.items():
        parts.append(f"<h2>{title}</h2>" + "".join(_pair(name, texts) for _, name, texts in shown[kind]))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    with whole_file(output / PAGE, errors="backslashreplace") as file:
        file.write(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><meta http-equiv="Content-Security-Policy" '
            f'content="{policy}"><title>Built pairs</title><style>{STYLE}</style><h1>Built pairs</h1>{"".join(parts)}'
            "</html>\n"
        )


def _reason(reason: str, count: int, first: dict[str, str] | None) -> str:
    example = f"{first['row_id']}: {first['reason']}" if first else ""
    return (
        f'<tr><td class="number">{count:,}</td><td>{html.escape(reason)}</td><td><small>{html.escape(example)}'
        "</small></td></tr>"
    )


def _pair(name: str, shown: dict[str, str]) -> str:
    row_id, kind = name.partition("/")[2].rsplit("/", 1)
    about = html.escape(f"{row_id}, {kind}, {shown['about']}")
    words = {key: html.escape(shown[key]) for key in ("instruction", "instruction_2", "output_2")}
    return (
        f'<div class="pair"><div class="why">{about}</div><div><h3>text-rich</h3><div class="words">'
        f"{words['instruction']}</div></div><div><h3>vision-rich</h3>"
        f'<img alt="" src="data:image/png;base64,{shown["picture"]}"><div class="words">{words["instruction_2"]}</div>'
        f'<h3>answer</h3><div class="words">{words["output_2"]}</div></div></div>'
    )
