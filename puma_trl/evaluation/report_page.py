"""The page of a report: one HTML file with everything in it."""

import base64
import re
from html import escape

from ..errors import printable
from .wrong_answers import WrongAnswer, WrongAnswers


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
details { overflow-x: auto } img { max-width: 100% } table { border-collapse: collapse; font-size: 13px }
td, th { padding: .15rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
section { display: flex; gap: 1rem; border-top: 1px solid #ccc; padding: 1rem 0 }
section div { flex: 1 1 0; min-width: 0 }
figure { flex: 0 0 14rem; margin: 0 } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6 }
pre { padding: .5rem; margin: .3rem 0; font-size: 13px } .gold { color: #060 } .wrong { color: #a00 }
@media (max-width: 700px) { section { display: block } }
"""


def render_page(title: str, protocol: list[str], chart: bytes, rows: list[list[str]], wrong: WrongAnswers) -> str:
    """
    Returns the page.

    Args:
        title (`str`):
            Name of the benchmark.
        protocol (`list[str]`):
            Paragraphs about how the figures were made, in Markdown without more than bold words.
        chart (`bytes`):
            The chart as PNG.
        rows (`list[list[str]]`):
            The table of all figures, the first row its header.
        wrong ([`WrongAnswers`]):
            Examples.
    """
    picture = f"data:image/png;base64,{base64.b64encode(chart).decode()}"
    head, *body = rows
    table = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in body)
    header = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    parts = [
        f"<h1>{_text(title)}</h1>",
        *(f"<p>{_bold(line)}</p>" for line in protocol),
        f'<img src="{picture}" alt="rates with 95 % intervals">',
        f"<h2>{len(wrong.examples)} of {wrong.total:,} wrong answers</h2>",
        *([f"<p>{_text(wrong.note)}</p>"] if wrong.note else []),
        *map(_example, wrong.examples),
        f"<details><summary>All figures</summary><table><tr>{header}</tr>{table}</table></details>",
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _example(wrong: WrongAnswer) -> str:
    figure = f'<figure><img src="{wrong.picture}" alt="picture of the item"></figure>' if wrong.picture else ""
    return (
        f"<section>{figure}<div><b>{_text(wrong.item)}</b><pre>{_text(wrong.question)}</pre>Reply"
        f'<pre>{_text(wrong.reply)}</pre>Read as <b class="wrong">{_text(wrong.extraction)}</b>, but right is '
        f'<b class="gold">{_text(wrong.gold)}</b></div></section>'
    )


def _text(text: str) -> str:
    """Returns text of others for the page: nothing of it is markup, and no control character is left."""
    return escape(printable(text))


def _bold(line: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", _text(line))
