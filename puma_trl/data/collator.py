"""`DataCollatorForPumaPairs`: rows → one student batch and, for the pair step, one `teacher_*` batch beside it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import DatasetDict
from PIL import Image
from torch.nn.functional import pad
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.data.data_collator import DataCollatorMixin
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from ..errors import ConfigError, DataError
from ..models.families import Family, family_of_processor
from ..models.teacher_model import TeacherSide
from ..models.tokenizers import get_tokenizer
from .encode import TextCollator
from .images import open_image
from .padding_free import PER_TOKEN, find_answers, line_up
from .policy import count_images
from .prompts import Prompts
from .render import Renderer, prompt_of


SIDES = ("student", "teacher")
# What the names of the teacher's tensors start with in a batch
TEACHER = "teacher_"
# What other answers change in a batch
_OF_ANSWERS = (*PER_TOKEN, "position_ids", "answer_positions")
_OF_ANSWERS += ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def split_sides(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the student's part of a batch, with what belongs to no side, and the teacher's, under the same names."""
    student = {name: value for name, value in batch.items() if not name.startswith(TEACHER)}
    teacher = {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}
    return student, teacher


def find_placeholder_sides(dataset: DatasetDict, trainable_parts: list[str] | None) -> tuple[str, ...]:
    """
    Returns the sides whose batches need a blank image where they have none.

    These are the sides of which some row, in any split, has an image; and the student's, where anything but the
    language model trains, which must have a gradient.

    Args:
        dataset ([`~datasets.DatasetDict`]):
            Checked rows, as [`load_data`] returns them.
        trainable_parts (`list[str]`, *optional*):
            Parts that train; without it, any may.
    """
    is_pair = "image_url_2" in dataset["train"].column_names
    columns = {"student": "image_url_2" if is_pair else "image_url", "teacher": "image_url"}
    sides = {side for side, column in columns.items() for split in dataset.values() if count_images(split, column)}
    if trainable_parts != ["language_model"]:
        sides.add("student")
    return tuple(side for side in SIDES if side in sides)


def _as_list(images: Any) -> list[Any]:
    """Returns the images of a side, of which data sets that `load_data` has not read may hold one alone, or none."""
    if not images:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def _open_row(row: dict[str, Any], sides: Iterable[str]) -> dict[str, Any]:
    return row | {"pictures": {side: [open_image(image) for image in row[f"image_url{side}"]] for side in sides}}


@dataclass
class DataCollatorForPumaPairs(DataCollatorMixin):
    """
    Data collator for text-rich/vision-rich pairs, and for single-sided rows.

    Each side goes through TRL's own vision collator, as prompt and completion, with labels on the answer only. The
    student side is the vision-rich one (`image_url_2`, `instruction_2`, `output_2`) where the rows have it, else the
    only one there is (`image_url`, `instruction`, `output`). The teacher side is the text-rich prompt followed by the
    *student's* answer, so that the answer positions of both sides carry the same tokens.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            Processor of the model; its tokenizer must have a pad token. Of a text model that reads one side it is a
            tokenizer.
        family ([`Family`], *optional*):
            The model family. Defaults to that of the processor's class.
        use_kl (`bool`, *optional*, defaults to `True`):
            Whether to add the teacher side. It needs pair rows.
        placeholder_sides (`tuple[str, ...]`, *optional*, defaults to `("student", "teacher")`):
            Sides on which a batch without any image gets a blank one behind its last column, where causal attention
            hides it. Without it, ranks with and without images would run different collectives and hang. See
            [`find_placeholder_sides`] for those that need none.
        special_tokens (`str`, *optional*, defaults to `"error"`):
            Whether the model's control tokens in texts are refused (`"error"`) or read as plain text (`"escape"`).
        padding_free (`bool`, *optional*, defaults to `False`):
            Whether the rows of a side stand one behind the other (see [`line_up`]), in place of beneath each other
            with padding. A blank image is then a row of its own.
        config ([`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the model, which `padding_free` needs.
        on_bad_image (`str`, *optional*, defaults to `"error"`):
            Whether a picture that cannot be read is an error, or its row is replaced (`"replace"`): by another one of
            the batch, or of an earlier batch where it is alone, without labels, so that nothing is learned twice.
        teacher ([`TeacherSide`], *optional*):
            What reads the text-rich side, where another model teaches.
        on_policy (`bool`, *optional*, defaults to `False`):
            Whether batches carry their prompts ([`Prompts`], as `prompts` and `teacher_prompts`), so that
            [`~DataCollatorForPumaPairs.write_answers`] can put other answers behind them. Rows need no answer then.
        keep_images (`bool`, *optional*, defaults to `False`):
            Whether the student's `prompts` hold the pictures as well, for vLLM, which reads them itself.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Type of tensor to return. Only `"pt"` is supported.

    The output has `input_ids`, `attention_mask`, `labels` (B, L) and the processor's image tensors, the same with the
    prefix `teacher_` (B, L'), `same_images`, whether both sides show the same pictures, `row_id`, the list of the
    rows' names, and, where rows were replaced, `dropped_rows`, a list of their `row_id` and `reason`. A side with a
    blank image has `blank_tokens`, the number of its tokens. Without padding a side is what [`line_up`] returns, and
    pairs have `answer_positions` (N,) besides (see [`find_answers`]).

    Raises:
        ConfigError: if `padding_free` is set without `config`.
        DataError: if `use_kl` is set and a row has no second side, the answers of a row tokenise differently, a text
            has control tokens, or a picture cannot be read; the row is named.
    """

    processor: ProcessorMixin | PreTrainedTokenizerBase
    family: Family | None = None
    use_kl: bool = True
    placeholder_sides: tuple[str, ...] = SIDES
    special_tokens: str = "error"
    on_bad_image: str = "error"
    padding_free: bool = False
    config: PreTrainedConfig | None = None
    teacher: TeacherSide | None = None
    on_policy: bool = False
    keep_images: bool = False
    return_tensors: str = "pt"
    _teacher: "DataCollatorForPumaPairs" = field(init=False, repr=False)
    _renderer: Renderer = field(init=False, repr=False)
    _side_collator: DataCollatorForVisionLanguageModeling | TextCollator = field(init=False, repr=False)
    _placeholder: dict[str, torch.Tensor] = field(init=False, repr=False, default_factory=dict)
    _last_row: dict[str, Any] | None = field(init=False, repr=False, default=None)

    def __post_init__(self):
        if self.padding_free and self.config is None:
            raise ConfigError("`padding_free` needs the configuration of the model. Give the collator its `config`.")
        self.family = self.family or family_of_processor(self.processor)
        self._renderer = Renderer(self.processor, self.special_tokens)
        if isinstance(self.processor, ProcessorMixin):
            self._side_collator = DataCollatorForVisionLanguageModeling(
                processor=self._renderer.reader, max_length=None, completion_only_loss=True
            )
        else:
            self._side_collator = TextCollator(self._renderer.reader)
        self._teacher = self
        if self.teacher is not None:
            self._teacher = DataCollatorForPumaPairs(
                self.teacher.processor,
                self.teacher.family,
                placeholder_sides=self.placeholder_sides if self.teacher.takes_images else (),
                special_tokens=self.special_tokens,
                padding_free=self.padding_free,
                config=self.teacher.config,
                on_policy=self.on_policy,
            )

    def torch_call(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collates rows of the checked data set (see [`load_data`]), or of another with the columns of the format."""
        suffix = "_2" if "instruction_2" in rows[0] else ""
        sides = {"student": suffix} | ({"teacher": ""} if self.use_kl else {})
        rows = [self._read_row(row, index, sides) for index, row in enumerate(rows)]
        if self.use_kl and not suffix:
            raise DataError(
                f"Row {rows[0]['row_id']} has no vision-rich side (`instruction_2`, `output_2`), but `use_kl` is "
                "true. Give pairs, or set `use_kl: false`."
            )
        rows, reasons = self._open_images(rows, sides.values())
        dropped, row_ids = list(reasons), [row["row_id"] for row in rows]
        batch = self._collate_side(rows, suffix, suffix, "student", dropped)
        if self.use_kl:
            teacher = self._teacher._collate_side(rows, "", suffix, "teacher", dropped)
            self._check_answers(row_ids, batch["labels"], teacher["labels"])
            teacher = self._teacher._finish_side(teacher, dropped)
            batch = self._finish_side(batch, dropped)
            batch.update({f"{TEACHER}{key}": value for key, value in teacher.items()})
            images = [(row["image_url"], row["image_url_2"]) for row in rows]
            batch["same_images"] = all(left == right for left, right in images) and any(left for left, _ in images)
        else:
            batch = self._finish_side(batch, dropped)
        batch["row_id"] = row_ids
        if reasons:
            batch["dropped_rows"] = list(reasons.values())
        return batch

    def write_answers(
        self, batch: dict[str, Any], answers: Sequence[Sequence[int]], dropped: Iterable[int] = ()
    ) -> None:
        """
        Puts other answers behind the prompts of a batch, in place; the pictures stay.

        Args:
            batch (`dict[str, Any]`):
                A batch of this collator with `on_policy`, on any device.
            answers (`Sequence[Sequence[int]]`):
                The tokens of each row's answer, with the one that ends it.
            dropped (`Iterable[int]`, *optional*):
                Rows whose answers bear no labels, beside those of which a picture could not be read.
        """
        for prefix, collator in (("", self), (TEACHER, self._teacher)):
            prompts = batch[f"{prefix}prompts"]
            side = prompts.with_answers(answers)
            if prompts.has_blank:
                side = collator._add_placeholder(side)
            side = collator._finish_side(side, [*prompts.dropped, *dropped])
            device = batch[f"{prefix}input_ids"].device
            for name in side.keys() & set(_OF_ANSWERS):
                value = side[name]
                batch[f"{prefix}{name}"] = value.to(device) if torch.is_tensor(value) else value

    def _finish_side(self, batch: dict[str, torch.Tensor], dropped: list[int]) -> dict[str, Any]:
        """Takes rows out of the loss; without padding, lines rows up, and notes where the pair step finds answers."""
        batch["labels"][dropped] = -100
        if not self.padding_free:
            return batch
        batch = line_up(batch, self.config)
        return batch | ({"answer_positions": find_answers(batch["labels"])} if self.use_kl else {})

    def _read_row(self, row: dict[str, Any], index: int, sides: dict[str, str]) -> dict[str, Any]:
        """Brings a row into the form of `load_data`, which may not have read it, and makes sure of its texts."""
        row = {"row_id": f"{index} of a batch"} | row
        for name, side in sides.items():
            row[f"image_url{side}"] = _as_list(row.get(f"image_url{side}"))
            reader = self._teacher if name == "teacher" else self
            problem = reader._renderer.find_problem(row, side)
            if row[f"image_url{side}"] and not isinstance(reader.processor, ProcessorMixin):
                problem = f"image for a text teacher: `image_url{side}` has {len(row[f'image_url{side}'])}"
            if problem is not None:
                raise DataError(f"Row {row['row_id']}: {problem}.")
        return row

    def _open_images(
        self, rows: list[dict[str, Any]], sides: Iterable[str]
    ) -> tuple[list[dict[str, Any]], dict[int, dict[str, str]]]:
        """Returns the rows with their pictures, and what was replaced: position → name of the row and reason."""
        opened, reasons = [], {}
        for position, row in enumerate(rows):
            try:
                opened.append(_open_row(row, sides))
            except DataError as error:
                if self.on_bad_image == "error":
                    raise DataError(
                        f"Row {row['row_id']}: {error}. Repair it; in training `bad_rows: drop` goes on without it."
                    ) from error
                opened.append(None)
                reasons[position] = {"row_id": row["row_id"], "reason": str(error)}
        if reasons:
            spare = next(filter(None, opened), None)
            if spare is None and len(rows) == 1 and self._last_row is not None:
                spare = _open_row(self._last_row, sides)
            if spare is None:
                broken = "; ".join(f"{each['row_id']}: {each['reason']}" for each in reasons.values())
                raise DataError(
                    f"No row of a batch has pictures that can be read, so none can replace them: {broken}."
                )
            opened = [row or spare for row in opened]
        self._last_row = {name: value for name, value in opened[-1].items() if name != "pictures"}
        return opened, reasons

    def _collate_side(
        self, rows: list[dict[str, Any]], suffix: str, answer_suffix: str, side: str, dropped: list[int]
    ) -> dict[str, Any]:
        prompts = self._renderer.prompts([prompt_of(row, suffix) for row in rows])
        outputs = [row[f"output{answer_suffix}"] or "" for row in rows]
        examples = [
            {"images": row["pictures"][suffix], "prompt": prompt, "completion": self._renderer.answer(output)}
            for row, prompt, output in zip(rows, prompts, outputs, strict=True)
        ]
        has_images = any(example["images"] for example in examples)
        batch = dict(self._side_collator(examples))
        needs_blank = not has_images and side in self.placeholder_sides
        if self.on_policy:
            batch["prompts"] = Prompts.of_batch(batch, self._pad_token_id, needs_blank, dropped)
            if self.keep_images and side == "student":
                batch["prompts"].images = self._as_read([example["images"] for example in examples], batch)
                tokenizer = get_tokenizer(self._renderer.reader)
                batch["prompts"].unexpanded = tokenizer(prompts, add_special_tokens=False)["input_ids"]
            if not all(outputs):  # what ends an answer goes too
                answers = [row[row != -100].tolist() for row in batch["labels"]]
                answers = [answer if output else [] for answer, output in zip(answers, outputs, strict=True)]
                batch |= batch["prompts"].with_answers(answers)
        return self._add_placeholder(batch) if needs_blank else batch

    def _as_read(self, images: list[list[Image.Image]], batch: dict[str, Any]) -> list[list[Image.Image]]:
        """Returns pictures in the size in which they are read, for a program that knows of no `max_pixels`."""
        if "image_grid_thw" not in batch:
            return images
        patch = self.processor.image_processor.patch_size
        sizes = ((width * patch, height * patch) for _, height, width in batch["image_grid_thw"].tolist())
        return [[image.resize(next(sizes), Image.Resampling.BICUBIC) for image in row] for row in images]

    @property
    def _pad_token_id(self) -> int:
        return get_tokenizer(self.processor).pad_token_id

    @staticmethod
    def _check_answers(row_ids: list[str], labels: torch.Tensor, teacher_labels: torch.Tensor) -> None:
        # a blank image may be one row more
        for row_id, student_row, teacher_row in zip(row_ids, labels, teacher_labels, strict=False):
            if not torch.equal(student_row[student_row != -100], teacher_row[teacher_row != -100]):
                raise DataError(
                    f"Row {row_id}: the answer has other tokens on the text-rich side than on the vision-rich side, "
                    "so their distributions cannot be compared. The processor must tokenise an answer independently "
                    "of its prompt."
                )

    def _add_placeholder(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Appends a blank image, outside attention to and from the answers: behind the last column, in the first row, or,
        without padding, as a row of its own.
        """
        if not self._placeholder:
            blank = Image.new("RGB", (28, 28), "white")
            text = self.family.image_text or self.processor.image_token
            self._placeholder = dict(
                self.processor(images=[[blank]], text=[text], add_special_tokens=False, return_tensors="pt")
            )
            self._placeholder["labels"] = torch.full_like(self._placeholder["input_ids"], -100)
        fill = {"input_ids": self._pad_token_id, "labels": -100}
        (height, width), (_, blank_width) = batch["input_ids"].shape, self._placeholder["input_ids"].shape
        if self.padding_free:
            around, place = (0, max(blank_width - width, 0), 0, 1), (height, 0)
        else:
            around, place = (0, blank_width), (0, width)
        result = {
            name: pad(value, around, value=fill.get(name, 0)) if name in PER_TOKEN else value
            for name, value in batch.items()
        }
        result["blank_tokens"] = blank_width
        for name, value in self._placeholder.items():
            if name not in PER_TOKEN:  # the image itself
                result[name] = value
                continue
            if name not in result:  # the processor omits it for text alone
                result[name] = torch.zeros_like(result["input_ids"])
            result[name][place[0], place[1] : place[1] + blank_width] = value[0]
        return result
