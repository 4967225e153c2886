"""Pairs → problems to ask a model, and its answers → pairs in the published form."""

import hashlib
import io
import json
import os
from base64 import b64encode
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.files import find_chunks, find_sources
from ...data.forms import find_forms
from ...data.images import picture_formats
from ...data.readers import read_chunk
from ...data.render import Renderer, prompt_of
from ...data.rows import ROW_COLUMNS, read_row
from ...errors import DataError
from ...evaluation.gap_answers import SIDES, options_of
from ...evaluation.gap_summary import GROUPS
from ...evaluation.local_model import Prompt
from ...evaluation.progress import Progress
from ..check.content import TIES
from ..check.scan import make_checker


# The column that keeps the answer of the data; no form reads it
GOLD = "gold_answer"
# Columns that are written again, since they say of the problem what its texts do not
FACTS = (*GROUPS, "text_rich_modality", *TIES)
SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """
    A pair whose problem a model is asked.

    Args:
        row (`dict[str, Any]`):
            The pair as it was read, with `row_id`.
        facts (`dict[str, Any]`):
            Its `kind`, `level`, `modality` and `text_rich_modality`, where the data says them.
    """

    row: dict[str, Any]
    facts: dict[str, Any]

    @property
    def row_id(self) -> str:
        """Names the row."""
        return self.row["row_id"]

    @property
    def gold(self) -> str:
        """The answer of the data: that of the vision-rich side, which is the other's too in most pairs."""
        return self.row["output_2"]

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The options that the question lists, if the gold answer is the letter of one."""
        return options_of(self.row)

    def prompt(self, side: str) -> Prompt:
        """Returns what a model is asked: one of `SIDES`."""
        text, _, history = prompt_of(self.row, SIDES[side])
        return Prompt(text, self.row[f"image_url{SIDES[side]}"], history)

    def answered(self, answer: str) -> dict[str, Any]:
        """Returns the pair with another answer on both sides."""
        return self.row | {"output": answer, "output_2": answer}

    def write(self, answer: str, folder: Path) -> dict[str, Any]:
        """
        Returns the row of a data file: the pair with another answer on both sides, and the gold one beside it.

        Args:
            answer (`str`):
                The answer.
            folder (`Path`):
                Where the file stands, from which paths of pictures start.
        """
        written = {}
        for suffix in SIDES.values():
            images = [write_image(image, folder) for image in self.row[f"image_url{suffix}"]]
            written[f"image_url{suffix}"] = images if len(images) > 1 else images[0] if images else None
            if self.row[f"history{suffix}"]:
                written[f"history{suffix}"] = self.row[f"history{suffix}"]
            written[f"instruction{suffix}"] = self.row[f"instruction{suffix}"]
            written[f"output{suffix}"] = answer
        return written | {GOLD: self.gold} | self.facts


def write_image(image: dict[str, Any], folder: Path) -> str:
    """Returns how a row of JSON names a picture: a path from its folder, or a `data:` address of its bytes."""
    if image["bytes"] is None:
        return os.path.relpath(image["path"], folder)
    with Image.open(io.BytesIO(image["bytes"]), formats=picture_formats()) as picture:
        kind = Image.MIME.get(picture.format, "image/png")
    return f"data:{kind};base64,{b64encode(image['bytes']).decode()}"


def find_change(problem: Problem, answer: str, folder: Path) -> str | None:
    """Says what training would not read of a row that [`Problem.write`] returned, if anything."""
    try:
        read = read_row(problem.write(answer, folder), str(folder))
    except DataError as error:
        return str(error)
    expected = problem.answered(answer)
    texts = [name for name in ROW_COLUMNS if not name.startswith("image")]
    changed = [name for name in texts if (read[name] or None) != (expected[name] or None)]
    pictures = [f"image_url{side}" for side in SIDES.values()]
    changed += [name for name in pictures if len(read[name]) != len(expected[name])]
    return f"read again, `{changed[0]}` would be another" if changed else None


def read_problems(
    data: list[str],
    folder: Path,
    *,
    columns: dict[str, str | list[str]] | None = None,
    image_root: str | None = None,
    split: str = "train",
    model: str | None = None,
) -> tuple[list[Problem], Renderer | None]:
    """
    Reads pairs as training does.

    Args:
        data (`list[str]`):
            Files, folders or Hub datasets.
        folder (`Path`):
            Where the answers will be written.
        columns (`dict[str, str | list[str]]`, *optional*):
            Where the data calls its columns otherwise: our column → the data's.
        image_root (`str`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of each file.
        split (`str`, *optional*, defaults to `"train"`):
            Split of the Hub datasets.
        model (`str`, *optional*):
            A local model, with whose processor the rows are checked.

    Returns:
        `tuple[list[Problem], Renderer]`: the problems in the order of the data, and what reads texts for the model,
        `None` without one.

    Raises:
        DataError: if a row cannot be used, has no gold answer, or is no pair; the first ones are named.
    """
    sources = find_forms(find_sources(data, image_root, None, split), columns)
    # what the sides say differently does not matter: both get another answer
    checker = replace(make_checker(sources, model, max_length=None), student_answers=True)
    if checker.renderer is not None:
        checker.renderer.opening.takes_any = True  # thoughts are taken out of the replies
    problems, bad, total = [], [], 0
    with Progress("reading", 0) as progress:
        for chunk in find_chunks(sources):
            facts = {
                number: {name: raw[name] for name in FACTS if isinstance(raw, dict) and raw.get(name) is not None}
                for number, raw in read_chunk(sources[chunk.source], chunk, FACTS)
            }
            rows = checker.check(chunk)
            total += len(rows)
            for row in rows:
                problem = Problem({name: row[name] for name in ("row_id", *ROW_COLUMNS)}, facts.get(row["number"], {}))
                flaw = _find_flaw(row, problem, folder)
                if flaw is None:
                    problems.append(problem)
                else:
                    bad.append(f"{row['row_id']}: {flaw}")
            progress.advance(len(rows))
    if bad:
        raise DataError(
            f"{len(bad):,} of {total:,} rows cannot be answered. The first ones: {'; '.join(bad[:SHOWN])}. Repair "
            "them, or leave them out: `puma-trl pairs check DATA --write_clean DIR` writes the others."
        )
    return problems, checker.renderer


def _find_flaw(row: dict[str, Any], problem: Problem, folder: Path) -> str | None:
    if row["problem"] is not None:
        return row["problem"]
    if row["instruction_2"] is None:
        return "missing value: the row has no vision-rich side (`instruction_2`)"
    return find_change(problem, problem.gold, folder)


def _picture_digest(image: dict[str, Any]) -> str:
    content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    return hashlib.sha256(content).hexdigest()


def digest(problems: list[Problem], side: str) -> str:
    """Returns a digest of what is asked, by which a continued run knows that the data is the same."""
    content = hashlib.sha256()
    for problem in problems:
        prompt = problem.prompt(side)
        pictures = [_picture_digest(image) for image in prompt.images]
        content.update(json.dumps([problem.row_id, prompt.text, list(prompt.history), pictures]).encode())
    return content.hexdigest()[:16]
