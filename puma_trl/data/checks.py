"""What is checked in every row before training: types, texts, answers, pictures, and the length in tokens."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from datasets import Features, Image, List, Value
from multiprocess import parent_process  # what `datasets` forks with
from PIL import Image as PILImage
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..errors import DataError
from ..models.families import Family
from ..models.tokenizers import get_tokenizer
from .files import Chunk, Source
from .images import image_size, image_stamp
from .readers import BrokenRow, read_chunk
from .render import Renderer, prompt_of
from .rows import ROW_COLUMNS, read_row
from .shared import digest_row
from .texts import is_blank, shorten, to_json
from .turns import NO_ANSWER


COLUMN_FEATURES = {
    "image_url": List(Image(decode=False)),
    "instruction": Value("string"),
    "output": Value("string"),
    "history": List({"role": Value("string"), "content": Value("string")}),
}
# The row as it is trained on, what is measured on it, the position of its file, what it has in common with rows of the
# same content, of the same but for answers, and of the same vision-rich or only side, what tells whether its image
# files have changed since, columns that are new in it and not read, and, if it cannot be used, why and how it stood in
# the file.
FEATURES = Features(
    {
        "row_id": Value("string"),
        **{name: COLUMN_FEATURES[name.removesuffix("_2")] for name in ROW_COLUMNS},
        "length": Value("int64"),
        "num_answer_tokens": Value("int64"),
        "source": Value("int32"),
        "digest": Value("int64"),
        "prompt_digest": Value("int64"),
        "side_digest": Value("int64"),
        "image_stamps": List(Value("int64")),
        "image_stamps_2": List(Value("int64")),
        "unread": List(Value("string")),
        "problem": Value("string"),
        "raw": Value("string"),
    }
)

SIDE_NAMES = {"": "text-rich", "_2": "vision-rich"}

# The kind of problem of pairs that have two answers
MISMATCH = "answers differ"

# What is said of the tokens of a row that is too long, where it has pictures
PICTURE_TOKENS = "of pictures"
# And where answers are sampled, for which there must be room
SAMPLED_TOKENS = "`max_completion_length"

# Each worker remembers what it found in this many image files.
MAX_SEEN_IMAGES = 50_000

# Blank images of these sizes (height, width) show how a processor turns images into tokens.
PROBE_SIZES = ((64, 64), (480, 640), (300, 1000))


@dataclass
class TokenCounter:
    """
    Counts the tokens of texts and images as the processor will produce them, without decoding a picture.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model.
        family ([`Family`]):
            The model family.
        special_tokens (`str`, *optional*, defaults to `"error"`):
            Whether control tokens in the texts of rows are a problem (`"error"`) or plain text (`"escape"`).

    Attributes:
        renderer ([`Renderer`]):
            Renders the texts that are counted.
    """

    processor: ProcessorMixin | PreTrainedTokenizerBase
    family: Family
    special_tokens: str = "error"
    renderer: Renderer = field(init=False, repr=False)
    _counts: dict[tuple[int, int], int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self):
        self.renderer = Renderer(self.processor, self.special_tokens)

    def count_texts(self, texts: list[str]) -> list[int]:
        """Returns the number of tokens of each text, without the special tokens that a tokenizer would add."""
        tokenizer = get_tokenizer(self.renderer.reader)
        if not texts:
            return []
        if not tokenizer.is_fast:
            return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        # Twice as fast as calling the tokenizer, which also builds masks and lists of ids.
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        return [len(encoding) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the tokens of each text, without the special tokens that a tokenizer would add."""
        return get_tokenizer(self.renderer.reader)(texts, add_special_tokens=False)["input_ids"] if texts else []

    def count_image(self, size: tuple[int, int]) -> int:
        """
        Returns the number of tokens that an image adds to its placeholder in the prompt.

        Args:
            size (`tuple[int, int]`):
                Height and width in pixels.

        Raises:
            ValueError: if the processor refuses the size.
        """
        if self._fixed is not None:
            return self._fixed
        if size not in self._counts:
            self._counts[size] = self._by_run(size) if self._offset is None else self._by_rule(size) + self._offset
        return self._counts[size]

    @cached_property
    def _probes(self) -> list[int]:
        return [self._by_run(size) for size in PROBE_SIZES]

    @cached_property
    def _offset(self) -> int | None:
        """
        What the processor's rule leaves out: the placeholder itself, and tokens that some put around images. `None` if
        it has no rule, or one that does not agree with what it does.
        """
        try:
            offsets = {run - self._by_rule(size) for size, run in zip(PROBE_SIZES, self._probes, strict=True)}
        # Workaround (transformers 5.23, no upstream issue found): LlavaProcessor's rule fails with image processors
        # that do not crop
        except (AttributeError, TypeError):
            return None
        return offsets.pop() if len(offsets) == 1 else None

    @cached_property
    def _fixed(self) -> int | None:
        """The number of tokens of any image, if the processor has no rule and does not look at the size."""
        return self._probes[0] if self._offset is None and len(set(self._probes)) == 1 else None

    def _by_rule(self, size: tuple[int, int]) -> int:
        return int(self.processor._get_num_multimodal_tokens(image_sizes=[size])["num_image_tokens"][0])

    def _by_run(self, size: tuple[int, int]) -> int:
        height, width = size
        blank = PILImage.new("RGB", (width, height), "white")
        expanded = self.processor(images=[[blank]], text=[self._placeholder], add_special_tokens=False)["input_ids"][0]
        return len(expanded) - self.placeholder_tokens

    @property
    def _placeholder(self) -> str:
        return self.family.image_text or self.processor.image_token

    @cached_property
    def placeholder_tokens(self) -> int:
        """The number of tokens of an image's placeholder in the prompt."""
        return self.count_texts([self._placeholder])[0]


@dataclass(frozen=True)
class SampledAnswers:
    """
    That the student writes answers itself in training, so that rows need none.

    Args:
        length (`int`):
            Longest of these answers in tokens, for which `max_length` must leave room.
        always (`bool`):
            Whether in all micro-batches, so that no answer of the data is trained on.
    """

    length: int
    always: bool


@dataclass
class RowChecker:
    """
    Reads chunks and checks their rows. Called by [`~datasets.Dataset.map`] with a batch of them, in several processes.

    A row that cannot be used keeps what could be read of it, with the reason in `problem` as `"kind: details"`.

    Args:
        sources (`list[Source]`):
            Where chunks come from.
        counter ([`TokenCounter`], *optional*):
            Counts tokens with the processor of a model. Without it, neither lengths nor special tokens are looked at.
        use_kl (`bool`):
            Whether both sides of a pair are trained on. Otherwise only the vision-rich one is checked.
        max_length (`int`, *optional*):
            Limit of the tokens of prompt and answer on each side.
        student_answers (`bool`):
            Whether the text-rich side gets the vision-rich side's answer, so that they cannot differ.
        decode_images (`bool`, *optional*, defaults to `False`):
            Whether every picture is decoded, rather than its header, checksums and end read.
        teacher_counter ([`TokenCounter`], *optional*):
            Counts the tokens of the text-rich side, where another model reads it. Defaults to `counter`.
        sampled ([`SampledAnswers`], *optional*):
            Answers that the student writes itself. Without it, rows need one.
    """

    sources: list[Source]
    counter: TokenCounter | None
    use_kl: bool
    max_length: int | None
    student_answers: bool
    decode_images: bool = False
    teacher_counter: TokenCounter | None = None
    sampled: SampledAnswers | None = None

    def __post_init__(self):
        self.counters = {"": self.teacher_counter or self.counter, "_2": self.counter}
        self.seen_images = {side: {} for side in self.counters}
        self.renderer = None if self.counter is None else self.counter.renderer
        self.takes_images = _takes_images(self.counter)
        for counter in (self.counter, self.teacher_counter):
            if counter is not None:
                counter.renderer.check_template()  # before any row is read

    def __call__(self, chunks: dict[str, list[int]]) -> dict[str, list]:
        if parent_process() is not None:
            # a fork of a process that has used OpenMP's threads would wait for threads that it has not got
            torch.set_num_threads(1)
        rows = []
        for values in zip(*(chunks[name] for name in Chunk._fields), strict=True):
            rows += self.check(Chunk(*values))
        return {name: [row[name] for row in rows] for name in FEATURES}

    def check(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Reads a chunk and returns its rows, with the keys of [`FEATURES`] and more."""
        rows = [self._read_row(chunk.source, *row) for row in read_chunk(self.sources[chunk.source], chunk)]
        for row in rows:
            if row["problem"] is None:
                row["problem"] = self._check_content(row) or self._check_images(row)
                side = self._sides(row)[-1]
                row.update(digest_row(row, ROW_COLUMNS, [f"{name}{side}" for name in COLUMN_FEATURES]))
        if self.counter is not None:
            self._measure([row for row in rows if row["problem"] is None])
        return rows

    def _read_row(self, position: int, number: int, raw: Any) -> dict[str, Any]:
        source = self.sources[position]
        row = dict.fromkeys(FEATURES) | {"row_id": source.row_id(number), "number": number, "source": position}
        if isinstance(raw, BrokenRow):
            return row | {"problem": raw.problem, "raw": raw.text}
        try:
            row |= read_row(raw, source.root, source.form)
        except DataError as error:
            return row | {"problem": str(error), "raw": to_json(raw)}
        for side in SIDE_NAMES:
            if row[f"image_url{side}"] is not None:
                row[f"image_stamps{side}"] = [image_stamp(image) for image in row[f"image_url{side}"]]
        if self.sampled is not None:
            self._settle_answers(row)
        if self.student_answers and row["output_2"] is not None:
            row["output"] = row["output_2"]
        return row

    def _settle_answers(self, row: dict[str, Any]) -> None:
        """Makes an answer in which nothing can be seen none; where none of the data counts, the student's is both."""
        for side in SIDE_NAMES:
            if row[f"output{side}"] is not None and is_blank(row[f"output{side}"]):
                row[f"output{side}"] = ""
        if self.sampled.always and "" in (row["output"], row["output_2"]) and row["output_2"] is not None:
            row["output"] = row["output_2"]

    def _sides(self, row: dict[str, Any]) -> tuple[str, ...]:
        # of a pair, a text model reads the side that is text
        if row["instruction_2"] is None or not (self.takes_images or self.use_kl):
            return ("",)
        return ("", "_2") if self.use_kl else ("_2",)

    def _check_content(self, row: dict[str, Any]) -> str | None:
        sides = self._sides(row)
        for side in sides:
            if is_blank(row[f"instruction{side}"]):
                return f"empty text: `instruction{side}` is empty"
            if is_blank(row[f"output{side}"]) and self.sampled is None:
                return f"{NO_ANSWER}: `output{side}` is empty"
            counter = self.counters[side]
            problem = None if counter is None else counter.renderer.find_problem(row, side)
            if problem is not None:
                return problem
        if len(sides) == 2 and row["output"] != row["output_2"]:
            return f"{MISMATCH}: `output` is {_quote(row['output'])}, `output_2` is {_quote(row['output_2'])}"
        return None

    def _check_images(self, row: dict[str, Any]) -> str | None:
        """Looks at the headers of the images, and keeps what they add to each side's tokens in `image_tokens`."""
        row["image_tokens"] = {}
        for side in self._sides(row):
            images = row[f"image_url{side}"]
            if images and not self.takes_images:
                return f"image for a text model: `image_url{side}` has {len(images)}"
            if images and not _takes_images(self.counters[side]):
                return f"image for a text teacher: `image_url{side}` has {len(images)}"
            results = [self._count_image(image, side) for image in images]
            for result in results:
                if isinstance(result, str):
                    return f"{result} (`image_url{side}`)"
            row["image_tokens"][side] = sum(results)
        return None

    def _count_image(self, image: dict[str, Any], side: str) -> int | str:
        """Returns the tokens that an image adds, or why it cannot be used; the answer is kept for the next row."""
        path = image["path"] if image["bytes"] is None else None
        counter, seen_images = self.counters[side], self.seen_images[side if self.teacher_counter else ""]
        if path in seen_images:
            return seen_images[path]
        try:
            size = image_size(image, self.decode_images)
            result = 0 if counter is None else counter.count_image(size)
        except DataError as error:
            result = str(error)
        except ValueError as error:  # processors refuse some sizes, such as very long and thin ones
            result = f"unreadable image: '{image['path']}': {error}"
        if path is not None:
            if len(seen_images) >= MAX_SEEN_IMAGES:
                seen_images.clear()
            seen_images[path] = result
        return result

    def _measure(self, rows: list[dict[str, Any]]) -> None:
        answers = [row["output_2"] if "_2" in self._sides(row) else row["output"] for row in rows]
        rendered = list(map(self.counter.renderer.answer, answers))
        counts = self.counter.count_texts(rendered)
        for row, answer, count in zip(rows, answers, counts, strict=True):
            row["num_answer_tokens"], row["length"] = count if answer else 0, 0
        if self.teacher_counter is not None:
            self._compare_answers(rows, answers)
        for side, counter in self.counters.items():
            here = [row for row in rows if side in self._sides(row)]
            prompts = counter.renderer.prompts([prompt_of(row, side) for row in here])
            self._measure_side(here, side, counter.count_texts(prompts))

    def _compare_answers(self, rows: list[dict[str, Any]], answers: list[str]) -> None:
        """Both models must read an answer as the same tokens."""
        ids, other_ids = (
            counter.encode(list(map(counter.renderer.answer, answers)))
            for counter in (self.counter, self.teacher_counter)
        )
        for row, mine, other in zip(rows, ids, other_ids, strict=True):
            if mine != other:
                row["problem"] = f"answer in other tokens: {len(mine)} in the student, {len(other)} in the teacher"

    def longest_answer(self, row: dict[str, Any]) -> int:
        """Returns the most tokens that may stand behind the prompts of a measured row: a given or a sampled answer."""
        if self.sampled is None:
            return row["num_answer_tokens"]
        return self.sampled.length if self.sampled.always else max(row["num_answer_tokens"], self.sampled.length)

    def _measure_side(self, rows: list[dict[str, Any]], side: str, counts: list[int]) -> None:
        for row, count in zip(rows, counts, strict=True):
            count += row["image_tokens"][side]
            row["length"] += count + row["num_answer_tokens"]
            count += (longest := self.longest_answer(row))
            if self.max_length is not None and count > self.max_length and row["problem"] is None:
                who = "row" if row["instruction_2"] is None else f"{SIDE_NAMES[side]} side"
                images = len(row[f"image_url{side}"])
                placeholders = images and images * self.counters[side].placeholder_tokens
                of_images = row["image_tokens"][side] + placeholders
                part = f" ({of_images} {PICTURE_TOKENS})" if images else ""
                if self.sampled is not None and longest == self.sampled.length:
                    part += f" with {SAMPLED_TOKENS}: {longest}`"
                row["problem"] = (
                    f"too long: the {who} has {count} tokens{part}, more than `max_length: {self.max_length}`"
                )


def _takes_images(counter: TokenCounter | None) -> bool:
    return counter is None or isinstance(counter.processor, ProcessorMixin)


def _quote(text: str) -> str:
    return repr(shorten(text)) if text else "empty"
