"""
One pass over data files in several processes: every row is checked as for training, and looked at for leaks and
overlap.

Of a row, only digests, lengths and findings are kept: about 60 bytes, and 16 for each picture.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, AutoProcessor

from ...config import PumaKLConfig
from ...data.checks import MAX_SEEN_IMAGES, SIDE_NAMES, RowChecker, SampledAnswers, TokenCounter
from ...data.files import Chunk, Source
from ...data.images import open_image
from ...data.places import PLACEHOLDER
from ...data.readers import BrokenRow, read_chunk
from ...data.render import prompt_of
from ...data.rows import read_row
from ...errors import DataError
from ...models.families import get_family
from ...models.pixels import cropped_share
from .content import TIES, Picture, Side, describe_picture, describe_side, digest, short_answer, tie_of
from .leakage import find_leaks
from .missing import SHOWS_SOURCE, find_missing
from .overlap import Reference


NO_PICTURE = "no picture"
BLANK_PICTURE = "blank picture"
CUT_PICTURE = "cut picture"
LONG_SIDE = "longer than max_length"
WITHOUT_ANSWER = "without answer"
# Where `pairs build --source keep` says that a picture shows source
SOURCE_COLUMN = "shows_source"
# What training allows where nothing else is set
MAX_LENGTH = PumaKLConfig.__dataclass_fields__["max_length"].default
MAX_COMPLETION_LENGTH = PumaKLConfig.__dataclass_fields__["max_completion_length"].default
# Share of pixels from which on a processor cuts too much
CUT_SHARE = 0.01


def sampled_answers(on_policy_share: float, max_completion_length: int | None = None) -> SampledAnswers | None:
    """
    Returns what training samples in place of answers, if anything.

    Raises:
        DataError: if the share or the length is out of range, or there is a length without a share.
    """
    if not 0 <= on_policy_share <= 1:
        raise DataError(f"`--on_policy_share` is {on_policy_share:g}, but must be between 0 and 1.")
    if max_completion_length is not None and not on_policy_share:
        raise DataError(
            f"`--max_completion_length {max_completion_length}` is of sampled answers. Set `--on_policy_share` too."
        )
    if not on_policy_share:
        return None
    if max_completion_length is None:
        max_completion_length = MAX_COMPLETION_LENGTH
    if max_completion_length < 1:
        raise DataError(f"`--max_completion_length` is {max_completion_length}, but must be at least 1.")
    return SampledAnswers(max_completion_length, always=on_policy_share == 1)


def make_checker(
    sources: list[Source], model: str | None, max_length: int | None, sampled: SampledAnswers | None = None
) -> RowChecker:
    """
    Returns what reads and checks the rows.

    Args:
        sources (`list[Source]`):
            Where chunks come from.
        model (`str`, *optional*):
            Folder or Hub name of a model whose processor, or tokenizer, counts tokens.
        max_length (`int`, *optional*):
            Limit of the tokens of each side.
        sampled ([`SampledAnswers`], *optional*):
            What [`sampled_answers`] returned, where training samples answers.

    Raises:
        DataError: if the model's processor cannot be read or has no chat template, or there is a limit without a
            model.
    """
    if model is None:
        if max_length is not None:
            raise DataError(
                f"`--max_length {max_length}` counts tokens. Name the model that reads them with `--model`."
            )
        return RowChecker(sources, None, use_kl=True, max_length=None, student_answers=False, sampled=sampled)
    try:
        processor, config = AutoProcessor.from_pretrained(model), AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise DataError(
            f"No model with a processor or tokenizer in '{model}': {str(error).rstrip('.')}. Name a model folder or a "
            "model of the Hub."
        ) from error
    if processor.chat_template is None:
        raise DataError(f"'{model}' has no chat template, so its prompts are unknown. Add chat_template.jinja to it.")
    counter = TokenCounter(processor, get_family(config))
    return RowChecker(sources, counter, use_kl=True, max_length=max_length, student_answers=False, sampled=sampled)


class PictureReader:
    """Decodes pictures, and remembers those of files for the next rows."""

    def __init__(self):
        self.seen: dict[str, Picture] = {}

    def __call__(self, images: list[dict[str, Any]]) -> tuple[Picture, ...]:
        """
        Describes the pictures of a side, in the form of [`~datasets.Image`].

        Raises:
            DataError: if one cannot be decoded.
        """
        return tuple(self._read(image) for image in images)

    def _read(self, image: dict[str, Any]) -> Picture:
        path = image["path"] if image["bytes"] is None else None
        if path is not None and path in self.seen:
            return self.seen[path]
        picture = describe_picture(open_image(image))
        if path is not None:
            if len(self.seen) >= MAX_SEEN_IMAGES:
                self.seen.clear()
            self.seen[path] = picture
        return picture


@dataclass
class ChunkSummary:
    """
    What is kept of a chunk. The arrays have one entry per usable row, `pictures` two per picture.

    Args:
        source (`int`):
            Position of the file.
        rows_read (`int`):
            Number of rows.
        index (`array`):
            Positions of the rows in the file.
        pairs (`array`):
            1 for pairs, 0 for rows with one side.
        rows, questions, answers (`array`):
            Digests of the whole row, of the student's prompt with its pictures, and of the final answer (0: none).
        lengths (`array`):
            Length of the text-rich and of the vision-rich side of each row, -1 for none.
        pictures (`array`):
            For each picture the entry of its row here, and the digest of its pixels.
        findings (`list[tuple[str, int, str]]`):
            Kind, position of the row in the file, and details.
        unread (`set[str]`):
            Columns that are not read and were not in the first rows.
        pixels, cut_pixels (`float`):
            Number of pixels of all pictures, and of those that the model's processor cuts off.
    """

    source: int
    rows_read: int
    index: array = field(default_factory=lambda: array("q"))
    pairs: array = field(default_factory=lambda: array("b"))
    rows: array = field(default_factory=lambda: array("Q"))
    questions: array = field(default_factory=lambda: array("Q"))
    answers: array = field(default_factory=lambda: array("Q"))
    lengths: array = field(default_factory=lambda: array("i"))
    pictures: array = field(default_factory=lambda: array("Q"))
    findings: list[tuple[str, int, str]] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    pixels: float = 0.0
    cut_pixels: float = 0.0

    def add(self, index: int, row: dict[str, Any], sides: dict[str, Side]) -> None:
        """Keeps what is needed of a usable row."""
        pictures = [picture.pixels for side in sides.values() for picture in side.pictures]
        student = list(sides.values())[-1]
        for pixels in dict.fromkeys(pictures):
            self.pictures.extend((len(self.index), pixels))
        texts = [row[f"{name}{side}"] for side in sides for name in ("instruction", "output")]
        self.index.append(index)
        self.pairs.append(len(sides) == 2)
        self.rows.append(digest(texts, pictures))
        self.questions.append(student.key)
        self.answers.append(student.answer)


class Scanner:
    """
    Checks the rows of a chunk, for [`map_tasks`].

    Args:
        checker (`RowChecker`):
            The checks of training.
        references (`dict[str, Reference]`):
            Name, such as `"eval data"`, and data that the rows must not be found in.
    """

    def __init__(self, checker: RowChecker, references: dict[str, Reference]):
        self.checker = checker
        self.references = references
        self.read_pictures = PictureReader()
        self.cut_shares: dict[tuple[int, int], float] = {}

    def __call__(self, chunk: Chunk) -> ChunkSummary:
        rows = self.checker.check(chunk)
        part = ChunkSummary(chunk.source, len(rows))
        kept, (marked, ties) = [], self._read_facts(chunk)
        for row in rows:
            index = row["number"]
            if row["problem"] is None:
                try:
                    sides = self._describe(row, ties.get(index, 0))
                except DataError as error:
                    row["problem"] = str(error)
            if row["problem"] is not None:
                kind, _, detail = row["problem"].partition(": ")
                part.findings.append((kind, index, detail))
                continue
            part.add(index, row, sides)
            part.unread.update(row["unread"] or ())
            part.findings += [(CUT_PICTURE, index, detail) for detail in self._find_cuts(sides, part)]
            part.findings += [(kind, index, detail) for kind, detail in self._find(row, sides)]
            if index in marked:
                part.findings.append((SHOWS_SOURCE, index, f"`{SOURCE_COLUMN}` is true"))
            kept.append((row, sides))
        self._measure(kept, part)
        return part

    def _read_facts(self, chunk: Chunk) -> tuple[set[int], dict[int, int]]:
        """Returns the rows whose picture is marked as showing source, and what ties rows to their problems."""
        source = self.checker.sources[chunk.source]
        names = [name for name in (SOURCE_COLUMN, *TIES) if name in source.form.seen]
        rows = (
            [(index, raw) for index, raw in read_chunk(source, chunk, names) if isinstance(raw, dict)] if names else []
        )
        marked = {index for index, raw in rows if raw.get(SOURCE_COLUMN) is True}
        return marked, {index: tie_of(raw) for index, raw in rows}

    def _describe(self, row: dict[str, Any], tie: int) -> dict[str, Side]:
        """Returns the sides of a row: `""`, and `"_2"` for pairs."""
        names = ("",) if row["instruction_2"] is None else ("", "_2")
        answer = short_answer(row["output"])
        return {
            name: describe_side(row[f"instruction{name}"], answer, self.read_pictures(row[f"image_url{name}"]), tie)
            for name in names
        }

    def _find(self, row: dict[str, Any], sides: dict[str, Side]) -> Iterator[tuple[str, str]]:
        yield from find_missing(row, sides[""])
        if not row["output_2" if "_2" in sides else "output"]:
            yield WITHOUT_ANSWER, f"the question is {row['instruction'][:80]!r}"
        if len(sides) == 2:
            yield from find_leaks(row, sides[""], sides["_2"])
            if not sides["_2"].pictures:
                yield NO_PICTURE, f"`image_url_2` is empty, and `instruction_2` is {row['instruction_2'][:80]!r}"
        for name, side in sides.items():
            for position, picture in enumerate(side.pictures):
                if picture.look is None:
                    yield BLANK_PICTURE, f"picture {position + 1} of `image_url{name}` has one colour"
        for name, reference in self.references.items():
            found = dict(match for side in self._searched(sides) for match in reference.find(side))
            yield from ((f"{kind} in {name}", detail) for kind, detail in found.items())

    def _find_cuts(self, sides: dict[str, Side], part: ChunkSummary) -> Iterator[str]:
        """Adds up the pixels that the model's processor cuts off, and yields where it cuts too many."""
        if self.checker.counter is None:
            return
        for name, side in sides.items():
            for picture in side.pictures:
                height, width = picture.size
                if picture.size not in self.cut_shares:
                    self.cut_shares[picture.size] = cropped_share(self.checker.counter.processor, [picture.size])
                share = self.cut_shares[picture.size]
                part.pixels += height * width
                part.cut_pixels += share * height * width
                if share > CUT_SHARE:
                    yield f"{share:.0%} of a picture of {width} x {height} pixels (`image_url{name}`)"

    def _searched(self, sides: dict[str, Side]) -> list[Side]:
        """Returns the sides that name a problem: the vision-rich prompt of a pair does not without its picture."""
        return [side for name, side in sides.items() if not name or side.pictures]

    def _measure(self, kept: list[tuple[dict[str, Any], dict[str, Side]]], part: ChunkSummary) -> None:
        """Adds the lengths of both sides: tokens with a model, characters without."""
        if self.checker.counter is None:
            for row, sides in kept:
                lengths = [len(row[f"instruction{name}"]) + len(row[f"output{name}"]) for name in sides]
                part.lengths.extend(lengths if len(sides) == 2 else (*lengths, -1))
            return
        done = len(part.lengths)
        self._count_tokens(kept, part)
        if self.checker.max_length is None:
            lengths = zip(part.lengths[done::2], part.lengths[done + 1 :: 2], strict=True)
            for (row, _), pair in zip(kept, lengths, strict=True):
                more = self.checker.longest_answer(row) - row["num_answer_tokens"]
                for name, length in zip(("text-rich", "vision-rich"), pair, strict=True):
                    if length + more > MAX_LENGTH:
                        side = name if pair[1] >= 0 else "only"
                        detail = f"the {side} side has {length + more} tokens, more than {MAX_LENGTH}"
                        part.findings.append((LONG_SIDE, row["number"], detail))

    def _count_tokens(self, kept: list[tuple[dict[str, Any], dict[str, Side]]], part: ChunkSummary) -> None:
        pairs = [(row, sides[""]) for row, sides in kept if len(sides) == 2]
        prompts = self.checker.renderer.prompts([prompt_of(row, "") for row, _ in pairs])
        counts = iter(self.checker.counter.count_texts(prompts))
        for row, sides in kept:
            if len(sides) == 1:
                part.lengths.extend((row["length"], -1))
                continue
            images = sum(self.checker.counter.count_image(picture.size) for picture in sides[""].pictures)
            text_rich = next(counts) + images + row["num_answer_tokens"]
            part.lengths.extend((text_rich, row["length"] - text_rich))


class ReferenceReader:
    """
    Reads the sides of evaluation data or benchmarks, for [`map_tasks`].

    Args:
        sources (`list[Source]`):
            Where chunks come from.
        columns (`list[tuple[str, str | None]]`, *optional*):
            Columns of question and picture in each source. Defaults to the published columns of pairs.
    """

    def __init__(self, sources: list[Source], columns: list[tuple[str, str | None]] | None):
        self.sources = sources
        self.columns = columns
        self.read_pictures = PictureReader()

    def __call__(self, chunk: Chunk) -> tuple[list[tuple[str, Side]], list[tuple[int, int, str]]]:
        source = self.sources[chunk.source]
        sides, problems = [], []
        for index, found, problem in self.read(chunk):
            sides += [(source.row_id(index), side) for side in found]
            problems += [(chunk.source, index, problem)] if problem else []
        return sides, problems

    def read(self, chunk: Chunk) -> list[tuple[int, list[Side], str | None]]:
        """Returns number, sides and, if it cannot be read, the problem of each row."""
        source = self.sources[chunk.source]
        names = None if self.columns is None else self.columns[chunk.source]
        rows = read_chunk(source, chunk, None if names is None else [name for name in names if name])
        results = []
        for index, raw in rows:
            sides, problem = [], None
            try:
                for side in self._read(self._as_row(raw, names), source):
                    sides.append(side)
            except DataError as error:
                problem = str(error)
            results.append((index, sides, problem))
        return results

    @staticmethod
    def _as_row(raw: Any, names: tuple[str, str | None] | None) -> Any:
        if isinstance(raw, BrokenRow):
            raise DataError(raw.problem)
        if names is None or not isinstance(raw, dict):
            return raw
        question, picture = names
        text = raw.get(question)
        if isinstance(text, str):
            text = PLACEHOLDER.sub("", text)
        return {"instruction": text, "image_url": raw.get(picture) if picture else None, "output": ""}

    def _read(self, raw: Any, source: Source) -> Iterator[Side]:
        """Yields the sides of a row. A long question is told apart without its picture, should that be missing."""
        row, tie = read_row(raw, source.root, source.form), tie_of(raw)
        for name in SIDE_NAMES:
            question, answer = row[f"instruction{name}"], short_answer(row[f"output{name}"] or "")
            if question is None:
                continue
            try:
                pictures = self.read_pictures(row[f"image_url{name}"])
            except DataError:
                side = describe_side(question, answer, (), tie)
                if side.says_all:
                    yield side
                raise
            if not name or pictures:
                yield describe_side(question, answer, pictures, tie)
