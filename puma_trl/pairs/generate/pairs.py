"""Problems of every kind → rows of pairs: which problem comes next, its two sides, and its drawing."""

import functools
import hashlib
import io
import itertools
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ...errors import ConfigError
from ...evaluation.modality import MODALITIES
from ..processes import stream_tasks
from . import areas, basic, charts, functions, plane, solid
from .drawing import Canvas, NoRoom
from .printing import print_above
from .problems import Kind, Problem
from .wording import VISION_DOMINANT, VISION_ONLY, word


KINDS: dict[str, Kind] = {
    "triangle_angles": basic.triangle_angles,
    "straight_angles": basic.straight_angles,
    "rectangle_perimeter": basic.rectangle_perimeter,
    "segment_total": basic.segment_total,
    "segment_part": basic.segment_part,
    "bar_difference": basic.bar_difference,
    "bar_total": basic.bar_total,
    "parallel_angles": plane.parallel_angles,
    "isosceles_angle": plane.isosceles_angle,
    "exterior_angle": plane.exterior_angle,
    "polygon_angles": plane.polygon_angles,
    "circle_angles": plane.circle_angles,
    "right_triangle": areas.right_triangle,
    "similar_triangles": areas.similar_triangles,
    "triangle_area": areas.triangle_area,
    "parallelogram_area": areas.parallelogram_area,
    "trapezoid_area": areas.trapezoid_area,
    "circle_area": areas.circle_area,
    "cuboid_volume": solid.cuboid_volume,
    "cuboid_surface": solid.cuboid_surface,
    "prism": solid.prism,
    "pyramid": solid.pyramid,
    "cylinder": solid.cylinder,
    "cone": solid.cone,
    "line_slope": functions.line_slope,
    "line_intersection": functions.line_intersection,
    "function_value": functions.function_value,
    "parabola_vertex": functions.parabola_vertex,
    "parabola_zeros": functions.parabola_zeros,
    "line_chart": charts.line_chart,
    "pie_chart": charts.pie_chart,
    "table": charts.table,
    "scatter_count": charts.scatter_count,
    "grid_area": charts.grid_area,
    "shape_count": charts.shape_count,
}
SPLITS = ("train", "heldout")
HELDOUT_SHARE = 0.1
CHUNK = 16
DRAWING_ATTEMPTS = 50
SAMPLING_ATTEMPTS = 2_000
LATEST = 4096  # digests


@dataclass(frozen=True)
class _Task:
    """One accepted problem: what a worker needs to make it again and draw it."""

    kind: str
    level: int
    seed: str
    image_size: tuple[int, int]
    label_grid: int
    modalities: tuple[str | None, ...] = (None,)
    text_rich_modality: str | None = None


class _Digests:
    """Remembers texts in 8 bytes each: a sorted array of digests, and a set of the latest."""

    def __init__(self):
        self.sorted, self.latest = np.empty(0, np.uint64), set()

    def add(self, text: str) -> bool:
        """Adds a text; returns whether it is new."""
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        place = np.searchsorted(self.sorted, np.uint64(digest))
        if digest in self.latest or (place < len(self.sorted) and self.sorted[place] == digest):
            return False
        self.latest.add(digest)
        if len(self.latest) == LATEST:
            self.sorted = np.sort(np.append(self.sorted, np.fromiter(self.latest, np.uint64)))
            self.latest.clear()
        return True

    def __len__(self) -> int:
        return len(self.sorted) + len(self.latest)


def split_of(kind: str, problem: Problem) -> str:
    """Returns the split that a problem belongs to by its content, whatever the seed, so that splits never overlap."""
    return "heldout" if int(problem_id(kind, problem)[:8], 16) < HELDOUT_SHARE * 2**32 else "train"


def problem_id(kind: str, problem: Problem) -> str:
    """Returns what stands for the content of a problem, whatever its words and its drawing."""
    return hashlib.sha256(repr((kind, problem.key)).encode()).hexdigest()[:16]


def generate_pairs(
    n: int,
    seed: int,
    kinds: Sequence[str] | None = None,
    *,
    split: str = "train",
    levels: Sequence[int] = (1,),
    image_size: tuple[int, int] = (512, 384),
    label_grid: int = 1,
    drawings: int = 1,
    num_proc: int = 1,
    with_images: bool = True,
    encoded: bool = False,
    modality: Sequence[str] | None = None,
    text_rich_modality: str | None = None,
) -> Iterator[dict]:
    """
    Generates pairs, by default no problem twice; the same for every number of processes.

    Problems are two if their words differ: mirrored ones, such as rectangles of 11 x 12 and 12 x 11, and bar charts
    that differ only in a bar that is not asked for. Such problems are in one split, so that nothing is held out that
    is trained on in another form.

    Args:
        n (`int`):
            Number of problems, each a pair, or one for each level of `modality`; the kinds take turns. One that has
            no unseen problem left leaves, with a warning.
        seed (`int`):
            Seed of the problems and drawings.
        kinds (`Sequence[str]`, *optional*):
            Names of problem kinds, keys of `KINDS`. Defaults to all.
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"heldout"`: disjoint by problem content, for all seeds.
        levels (`Sequence[int]`, *optional*, defaults to `(1,)`):
            Difficulty levels to choose from.
        image_size (`tuple[int, int]`, *optional*, defaults to `(512, 384)`):
            Width and height of the drawings in pixels.
        label_grid (`int`, *optional*, defaults to `1`):
            Distance in pixels of the lines that labels stand on (see [`Canvas`]).
        drawings (`int`, *optional*, defaults to `1`):
            How often a problem may come, each time in another drawing.
        num_proc (`int`, *optional*, defaults to `1`):
            Processes that draw.
        with_images (`bool`, *optional*, defaults to `True`):
            Whether to draw. Without, rows have the text-rich side only.
        encoded (`bool`, *optional*, defaults to `False`):
            Whether pictures come as the bytes of PNG files, which the processes that draw them encode.
        modality (`Sequence[str]`, *optional*):
            Levels of the vision-rich side, of `MODALITIES`: a problem comes at each of them, with the same figure.
            By default the prompts are those of `"vision_dominant"`, and rows say no level.
        text_rich_modality (`str`, *optional*):
            Level of the text-rich side, which then has the figure too. By default it has the words alone.

    Yields:
        Rows with `image_url` (empty, or as `image_url_2`), `instruction`, `output`, `image_url_2` (a PIL picture or
        bytes), `instruction_2`, `output_2`, `kind`, `level` and `answer`, and `modality` and `text_rich_modality`
        where they are given, then with `problem_id`, by which `split` and `check` know the rows of a problem.

    Raises:
        ConfigError: at once if a kind, split or level is unknown, a number is out of range, or the sides' levels are
            in the wrong order; later, if no kind has an unseen problem left, or a figure cannot be drawn legibly at
            this size.
    """
    kinds = list(KINDS) if kinds is None else list(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"There is no problem kind '{kind}'. Choose from {', '.join(KINDS)}.")
    if split not in SPLITS:
        raise ConfigError(f"There is no split '{split}'. Choose one of {', '.join(SPLITS)}.")
    _check_numbers(n, split, image_size, label_grid, num_proc)
    modalities = _order_modalities(modality, text_rich_modality, with_images)
    tasks = (
        replace(task, modalities=modalities, text_rich_modality=text_rich_modality)
        for task in itertools.islice(_sample_tasks(seed, kinds, split, levels, drawings, (image_size, label_grid)), n)
    )
    return _make_rows((_encoded_pairs if encoded else _pairs) if with_images else _text_sides, tasks, num_proc)


def _check_numbers(n: int, split: str, image_size: tuple[int, int], label_grid: int, num_proc: int) -> None:
    if n < 0:
        raise ConfigError(
            f"{n} pairs are asked for in the split '{split}', but there is no negative number of them. Ask for 0 or "
            "more."
        )
    if min(image_size) < 1:
        width, height = image_size
        raise ConfigError(
            f"`image_size` is {width}x{height}, but a picture has pixels both ways. Choose a larger one, such as "
            "512x384."
        )
    if label_grid < 1:
        raise ConfigError(f"`label_grid` is {label_grid}, but lines are at least a pixel apart. Choose 1 or more.")
    if num_proc < 1:
        raise ConfigError(f"`num_proc` is {num_proc}, but at least one process must draw. Choose 1 or more.")


def _order_modalities(
    modality: Sequence[str] | None, text_rich_modality: str | None, with_images: bool
) -> tuple[str | None, ...]:
    """Returns the levels at which a problem comes, in their order."""
    if modality is None and text_rich_modality is None:
        return (None,)
    if not modality:
        raise ConfigError(
            "`modality`, the level of the vision-rich side, is not given. Choose one or more of "
            f"{', '.join(MODALITIES)}."
        )
    if not with_images:
        raise ConfigError("Levels of modality need pictures. Leave out `modality`, or draw.")
    for name in filter(None, (*modality, text_rich_modality)):
        if name not in MODALITIES:
            raise ConfigError(f"There is no modality '{name}'. Choose from {', '.join(MODALITIES)}.")
    ordered = tuple(sorted(set(modality), key=MODALITIES.index))
    if text_rich_modality in MODALITIES[MODALITIES.index(ordered[0]) :]:
        raise ConfigError(
            f"`text_rich_modality` is '{text_rich_modality}', but the other side is at '{ordered[0]}', which has as "
            f"many words or more. Choose levels in this order: {', '.join(MODALITIES)}."
        )
    return ordered


def _make_rows(make: Callable[[_Task], list[dict]], tasks: Iterator[_Task], num_proc: int) -> Iterator[dict]:
    if num_proc == 1:
        chunks = ([task] for task in tasks)
    else:
        chunks = iter(lambda: list(itertools.islice(tasks, CHUNK)), [])
    for rows in stream_tasks(functools.partial(_make_chunk, make), chunks, num_proc):
        yield from rows


def _make_chunk(make: Callable[[_Task], list[dict]], tasks: list[_Task]) -> list[dict]:
    return [row for task in tasks for row in make(task)]


def _sample_tasks(
    seed: int,
    kinds: list[str],
    split: str,
    levels: Sequence[int],
    drawings: int,
    style: tuple[tuple[int, int], int],
) -> Iterator[_Task]:
    seen = _Digests()
    used_up: set[tuple[str, int]] = set()
    for index in itertools.count():
        kind = kinds[index % len(kinds)]
        level = levels[index // len(kinds) % len(levels)]
        if (kind, level) in used_up:
            continue
        for attempt in range(SAMPLING_ATTEMPTS):
            task = _Task(kind, level, f"{seed}/{split}/{index}/{attempt}", *style)
            problem = _make_problem(task)
            if split_of(kind, problem) != split:
                continue
            content = f"{problem.facts}\n{problem.question}"
            if any(seen.add(f"{content}\n{drawing}") for drawing in range(drawings)):
                yield task
                break
        else:
            used_up.add((kind, level))
            message = f"The kind '{kind}' has no unseen problem left for the split '{split}' at level {level}"
            message += f" after {len(seen):,} pairs"
            if len(used_up) == len(set(kinds)) * len(set(levels)):
                raise ConfigError(
                    f"{message}, and nor has any other. Ask for fewer pairs, or for more kinds or levels."
                )
            warnings.warn(f"{message}. The other kinds fill its place.")


def _make_problem(task: _Task) -> Problem:
    return KINDS[task.kind](random.Random(task.seed), task.level)


def _text_sides(task: _Task) -> list[dict]:
    return [_text_side(task, _make_problem(task))]


def _text_side(task: _Task, problem: Problem) -> dict:
    return {
        "image_url": "",
        "instruction": f"{problem.facts} {problem.question_alone or problem.question}",
        "output": f"{problem.steps} Answer: {problem.answer}",
        "kind": task.kind,
        "level": task.level,
        "answer": problem.answer,
    }


def _pairs(task: _Task) -> list[dict]:
    return _with_pictures(task, lambda picture: picture.convert("RGB"))


def _encoded_pairs(task: _Task) -> list[dict]:
    return _with_pictures(task, _encode)


def _encode(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # the usual 6 takes longer than the drawing
    return file.getvalue()


def _with_pictures(task: _Task, make: Callable[[Image.Image], Image.Image | bytes]) -> list[dict]:
    """Returns the pairs of a problem with what is made of their pictures, of each once."""
    rows, made = list(_drawn_pairs(task)), {}
    for row in rows:
        for column in ("image_url", "image_url_2"):
            if picture := row[column]:
                if id(picture) not in made:
                    made[id(picture)] = picture, make(picture)  # kept, so that no other gets its id
                row[column] = made[id(picture)][1]
    return rows


def _drawn_pairs(task: _Task) -> Iterator[dict]:
    """Yields the pair of each level of modality, all with one figure."""
    problem = _make_problem(task)
    figure = _draw(problem, task)
    for modality in task.modalities:
        row = _text_side(task, problem)
        prompt, picture = _make_side(problem, figure, task, modality or VISION_DOMINANT)
        row |= {"image_url_2": picture, "instruction_2": prompt, "output_2": row["output"]}
        if task.text_rich_modality:
            prompt, picture = _make_side(problem, figure, task, task.text_rich_modality)
            row |= {"image_url": picture, "instruction": prompt, "text_rich_modality": task.text_rich_modality}
        yield row | ({"modality": modality, "problem_id": problem_id(task.kind, problem)} if modality else {})


def _make_side(problem: Problem, figure: Image.Image, task: _Task, modality: str) -> tuple[str, Image.Image]:
    """Returns prompt and picture of a side at a level of modality."""
    prompt = word(problem, task.kind, task.level, modality, task.seed)
    if modality != VISION_ONLY:
        return prompt, figure
    try:
        return prompt, print_above(problem.question, figure, task.label_grid)
    except NoRoom as error:
        raise _too_small(task, problem, str(error)) from None


def _draw(problem: Problem, task: _Task) -> Image.Image:
    for attempt in range(DRAWING_ATTEMPTS):
        rng = random.Random(f"{task.seed}/drawing/{attempt}")
        canvas = Canvas(*task.image_size, rng, label_grid=task.label_grid)
        try:
            problem.draw(canvas)
        except NoRoom as error:
            # the error itself would keep the picture, and be kept by it, until garbage is collected
            reason = str(error)
        else:
            return canvas.finish()
    raise _too_small(task, problem, reason)


def _too_small(task: _Task, problem: Problem, reason: str) -> ConfigError:
    width, height = task.image_size
    return ConfigError(
        f"A problem of the kind '{task.kind}' ({problem.facts}) could not be drawn in {width}x{height} pixels: "
        f"{reason} Choose a larger `image_size`, or leave the kind out."
    )
