"""Problems → pairs: one chunk of the input at a time, in one or several processes."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.files import DROPPED, Chunk, Source, find_chunks
from ...data.images import open_image
from ...data.policy import REMEDIES
from ...data.readers import BrokenRow, read_chunk
from ...data.texts import shorten
from ...errors import DataError
from ...files import whole_file
from ..processes import map_tasks
from ..prompts import VISION_ONLY_PROMPTS
from .compose import Composition, compose, draw_style
from .files import ChunkWriter, find_marker
from .fonts import FontBook
from .page import Showcase
from .presets import PRESETS, SourceProblem, read_problem, split_question
from .settings import BuildSettings
from .splits import NoConditions


COUNTS = ("read", "rows", "diagrams", "formulas", "source_pictures", "by_position")
LONGEST_REASON = 300  # characters
EXAMPLES = 3  # of pictures that would show source, of each chunk


class ShowsSource(DataError):
    """A picture would show the source of a formula or a program."""


class Builder:
    """Builds one chunk of the input at a time, in any process; `bad_rows` is `"error"` or `"drop"`."""

    def __init__(self, settings: BuildSettings, sources: list[Source], output: Path, bad_rows: str):
        self.settings, self.sources, self.output, self.bad_rows = settings, sources, output, bad_rows
        self.book = FontBook(settings.fonts)
        self.clean = PRESETS[settings.preset].clean if settings.preset else None
        self.stops = {ShowsSource: settings.source == "error"}

    def __call__(self, task: tuple[int, Chunk]) -> dict[str, Any]:
        """
        Builds a chunk, unless that is done, and leaves `parts/<number>.json`, which is written last.

        Returns:
            `rows` (written), `read`, `diagrams`, `formulas`, `source_pictures` (that show source, or would),
            `by_position` (answers that were positions of choices), `skipped` (level and reason → rows that cannot have
            it), `dropped` (reason → rows), `first_dropped` (reason → the first such row), `examples` (of source),
            `showcase` (pairs for the page), and `unread` (columns that only some rows have).

        Raises:
            DataError: if rows cannot be used and `bad_rows` is `"error"`.
        """
        number, chunk = task
        marker = find_marker(self.output, number)
        if marker.exists():
            return json.loads(marker.read_text())
        source = self.sources[chunk.source]
        dropped, counts, skipped, unread = [], Counter(dict.fromkeys(COUNTS, 0)), Counter(), set()
        examples, stopping, showcase = [], [], Showcase(self.settings.seed)
        with ChunkWriter(self.output, number, embedded=self.settings.format == "parquet") as writer:
            for number, raw in read_chunk(source, chunk):
                row_id = source.row_id(number)
                counts["read"] += 1
                try:
                    problem = self._read(raw, source)
                    unread.update(problem.unread)
                    counts["by_position"] += problem.by_position
                    skipped.update(self._build_row(problem, row_id, writer, counts, examples, showcase))
                except DataError as error:
                    written = raw.text if isinstance(raw, BrokenRow) else repr(raw)
                    dropped.append({"row_id": row_id, "reason": str(error), "raw": written[:1000]})
                    if self.stops.get(type(error), self.bad_rows == "error"):
                        stopping.append(dropped[-1])
            if stopping:
                raise DataError(self._explain(stopping, counts["read"]))
            writer.finish(dropped)
        reasons = Counter(row["reason"].split(":", 1)[0] for row in dropped)
        result = {**counts, "skipped": skipped, "dropped": reasons, "unread": sorted(unread)}
        result |= {"examples": examples[:EXAMPLES], "showcase": showcase.to_json()}
        result["first_dropped"] = {
            row["reason"].split(":", 1)[0]: {"row_id": row["row_id"], "reason": row["reason"][:LONGEST_REASON]}
            for row in reversed(dropped)
        }
        with whole_file(marker) as file:
            json.dump(result, file)
        return result

    def _explain(self, stopping: list[dict[str, str]], read: int) -> str:
        """Words the rows that stop the build, and the remedies."""
        first = "\n".join(f"  {row['row_id']}: {row['reason']}" for row in stopping[:3])
        kinds = dict.fromkeys(row["reason"].split(":", 1)[0] for row in stopping)
        remedies = "".join(f" {REMEDIES[kind]}" for kind in kinds if kind in REMEDIES)
        options = ["--source"] if "shows source" in kinds else []
        options += ["--bad_rows"] if kinds.keys() - {"shows source"} else []
        return (
            f"{len(stopping):,} of {read:,} rows cannot be used. The first ones:\n{first}\nRepair them, or pass "
            f"{' and '.join(f'`{option} drop`' for option in options)} to leave such rows out and have them listed in "
            f"{self.output / DROPPED}.{remedies}"
        )

    def _read(self, raw: Any, source: Source) -> SourceProblem:
        """Reads a row, and puts its texts in order as the preset says."""
        if isinstance(raw, BrokenRow):
            raise DataError(raw.problem)
        problem = read_problem(raw, source.root, source.form, self.settings.choices, self.settings.facts)
        return problem if self.clean is None else self.clean(problem)

    def _build_row(
        self,
        problem: SourceProblem,
        row_id: str,
        writer: ChunkWriter,
        counts: Counter,
        examples: list[dict[str, str]],
        showcase: Showcase,
    ) -> list[str]:
        """
        Writes the pairs of a problem; returns the levels that it cannot have, with the reasons.

        Raises:
            DataError: if it cannot be used: no level can be made, and not only for want of conditions.
        """
        if len(problem.images) > 1:
            raise DataError(f"several images: {len(problem.images)} diagrams, but one canvas takes one")
        diagram = open_image(problem.images[0]) if problem.images else None
        made, skipped, failure = {}, [], None
        for level in self.settings.levels:
            try:
                made[level] = self._make_side(problem, level, diagram, row_id)
                failures = made[level][1].failures
                counts["source_pictures"] += bool(failures)
                examples += [{"row_id": row_id, "source": source, "reason": why} for source, why in failures[:1]]
                if failures and self.settings.source != "keep":
                    del made[level]
                    source, why = failures[0]
                    raise ShowsSource(f"shows source: '{shorten(source)}' cannot be drawn ({why})")
            except DataError as error:
                skipped.append(f"{level}: {str(error).split(':', 1)[0]}")
                if not isinstance(error, NoConditions):
                    failure = error
        if not made and failure is not None:
            raise failure
        keeps_diagram = diagram is not None and self.settings.text_rich_image == "keep"
        text_rich = {
            "image_url": writer.add_diagram(problem.images[0]) if keeps_diagram else None,
            "instruction": _join(problem.hint, problem.facts, problem.question),
            "output": problem.answer,
        }
        if problem.system:
            text_rich |= {"system": problem.system, "system_2": problem.system}
        for level, (prompt, composition) in made.items():
            picture = writer.add_picture(composition.image)
            vision_rich = {"image_url_2": picture, "instruction_2": prompt, "output_2": problem.answer}
            row = text_rich | vision_rich | {"kind": level}
            if self.settings.source == "keep":
                row["shows_source"] = bool(composition.failures)
            writer.add_row(row)
            size = composition.image.size
            showcase.consider(row_id, row, writer.last_picture, size, len(composition.failures))
            counts.update(formulas=composition.formulas)
        counts.update(rows=len(made), diagrams=bool(made) and diagram is not None)
        return skipped

    def _make_side(
        self, problem: SourceProblem, level: str, diagram: Image.Image | None, row_id: str
    ) -> tuple[str, Composition]:
        """Returns prompt and picture of the vision-rich side, which depend on seed, row and level alone."""
        rng = random.Random(f"{self.settings.seed}/{row_id}/{level}")
        if level == "vision_only":
            text, prompt = _join(problem.facts, problem.question), rng.choice(VISION_ONLY_PROMPTS)
        else:
            text, prompt = split_question(problem)
        composition = compose(text, diagram, draw_style(rng), self.book, seed=rng.getrandbits(32))
        return _join(problem.hint, prompt), composition


def _join(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def run_chunks(builder: Builder, num_proc: int) -> Iterator[dict[str, Any]]:
    """
    Builds all chunks, and yields their results in order.

    Raises:
        DataError: if rows cannot be used and `bad_rows` is `"error"`, or the input's structure is broken.
    """
    return map_tasks(builder, list(enumerate(find_chunks(builder.sources))), num_proc, "Building")


def add_up(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds the counts of all chunks; the most frequent reasons come first."""
    total = {name: sum(result[name] for result in results) for name in COUNTS}
    for name in ("skipped", "dropped"):
        total[name] = dict(sum((Counter(result[name]) for result in results), Counter()).most_common())
    total["examples"] = [example for result in results for example in result["examples"]][:EXAMPLES]
    total["first_dropped"] = {}
    for result in results:
        total["first_dropped"] = result["first_dropped"] | total["first_dropped"]
    total["unread"] = sorted({name for result in results for name in result["unread"]})
    return total
