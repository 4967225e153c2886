"""
Checks pairs before training: everything that training checks, answers given away, overlap with evaluation data and
benchmarks, duplicates and lengths, as a report of one page.

```bash
puma-trl pairs check outputs/pairs/train.jsonl --eval outputs/pairs/heldout.jsonl
puma-trl pairs check outputs/pairs --model Qwen/Qwen2-VL-2B-Instruct --max_length 2048 \
    --against testmini.parquet --output report.json
```

The exit code is 0 without errors (warnings are none), 1 with errors, and 2 if the check itself could not be done.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...data.files import Source, find_chunks, find_sources
from ...data.forms import find_forms
from ...data.policy import REMEDIES
from ...data.readers import read_chunk
from ...errors import DataError
from ...files import check_file
from ..mapping import add_data, add_num_proc, add_on_policy_share, as_option, read_options
from ..processes import count_processes, map_tasks
from ..subset import find_target, write_subset
from . import leakage
from .content import seen_ties
from .kinds import (
    BENCHMARK,
    CONTRADICTION,
    DUPLICATE_PICTURE,
    DUPLICATE_ROW,
    EVAL,
    FINDING_KINDS,
    NOT_A_PAIR,
    NOT_COMPARED,
    REFUSED,
)
from .overlap import Reference
from .report import ERROR, NOTE, WARNING, Finding, Report, describe_forms, print_report, write_report
from .scan import (
    CUT_PICTURE,
    CUT_SHARE,
    MAX_COMPLETION_LENGTH,
    WITHOUT_ANSWER,
    ChunkSummary,
    ReferenceReader,
    Scanner,
    make_checker,
    sampled_answers,
)


# Columns of question and picture in benchmarks, the first that is there. MathVista's pictures are in `decoded_image`.
QUESTION_COLUMNS = ("question", "instruction", "problem", "query", "question_text")
IMAGE_COLUMNS = ("decoded_image", "image", "images", "image_path", "image_url", "image_url_2")

# Share of rows whose answer is among the numbers of the question from which on chance does not explain it, and the
# fewest such rows that say so.
CHANCE_SHARE, CHANCE_ROWS = 0.2, 20


@dataclass
class _Findings:
    """Findings by kind, with the sources whose positions they name."""

    sources: list[Source]
    by_kind: dict[str, Finding] = field(default_factory=dict)
    flawed: set[tuple[int, int]] = field(default_factory=set)  # rows with an error or a warning of their own

    def add(self, kind: str, source: int, index: int, detail: str) -> None:
        finding = self._get(kind)
        finding.add(self.sources[source], index, detail)
        if finding.level != NOTE and kind != CUT_PICTURE:
            self.flawed.add((source, index))

    def _get(self, kind: str) -> Finding:
        if kind not in self.by_kind:
            base, _, where = kind.partition(" in ")
            known = FINDING_KINDS.get(kind) or (FINDING_KINDS.get(base) if where in (EVAL, BENCHMARK) else None)
            refused = (ERROR, REFUSED, as_option(REMEDIES.get(kind, "Repair the row, or drop it.")))
            level, meaning, remedy = known or refused
            self.by_kind[kind] = Finding(kind, level, meaning.format(where=where), remedy)
        return self.by_kind[kind]


def check_pairs(
    data: list[str],
    *,
    eval_data: list[str] | None = None,
    against: list[str] | None = None,
    columns: dict[str, str | list[str]] | None = None,
    model: str | None = None,
    max_length: int | None = None,
    on_policy_share: float = 0.0,
    max_completion_length: int | None = None,
    image_root: str | None = None,
    split: str = "train",
    question_column: str | None = None,
    image_column: str | None = None,
    num_proc: int | None = None,
    write_clean: Path | None = None,
) -> Report:
    """
    Checks data.

    The arguments are the options of the command, where they are described; `columns` is our column → the data's.

    Raises:
        DataError: if data or the model's processor cannot be read, an option is out of range, or a file is empty.
    """
    num_proc = count_processes(num_proc)
    sampled = sampled_answers(on_policy_share, max_completion_length)
    sources, eval_sources = _find_formed(data, eval_data, image_root, split, columns, needs_answers=sampled is None)
    clean = write_clean and find_target(sources, write_clean / "train")
    scanner = Scanner(make_checker(sources, model, max_length, sampled), {})
    chunks = list(find_chunks(sources))
    findings = _Findings(sources)
    report = Report(data=data, model=model, unit="characters" if model is None else "tokens")
    if eval_sources:
        scanner.references[EVAL] = _read_reference(eval_sources, None, EVAL, num_proc, report)
        report.tied_by = [name for name in seen_ties(sources) if name in seen_ties(eval_sources)]
    if against:
        benchmarks = find_sources(against, None, None, "test")
        found = [_find_columns(source, question_column, image_column) for source in benchmarks]
        scanner.references[BENCHMARK] = _read_reference(benchmarks, found, BENCHMARK, num_proc, report)
    parts = []
    for part in map_tasks(scanner, chunks, num_proc, "Checking"):
        for kind, index, detail in part.findings:
            findings.add(kind, part.source, index, detail)
        part.findings.clear()  # findings keep the details of some rows only
        parts.append(part)
    _compare_rows(parts, findings, report)
    _judge_cut(parts, findings)
    report.forms = describe_forms(sources)
    unread = [name for source in sources for name in source.form.unread]
    report.unread = list(dict.fromkeys([*unread, *sorted(name for part in parts for name in part.unread)]))
    report.findings += findings.by_kind.values()
    _judge_answers(report, on_policy_share)
    _judge_chance(report)
    if clean is not None:
        usable = ((part.source, index) for part in parts for index in part.index)
        report.clean_rows = write_subset(sources, (row for row in usable if row not in findings.flawed), clean)
        report.clean = clean
    return report


def _find_formed(
    data: list[str],
    eval_data: list[str] | None,
    image_root: str | None,
    split: str,
    columns: dict[str, str | list[str]] | None,
    needs_answers: bool,
) -> tuple[list[Source], list[Source]]:
    """Finds the sources of data and evaluation data; a column of the mapping may be in one of them only."""
    sources = find_sources(data, image_root, None, split)
    formed = find_forms(sources + find_sources(eval_data or [], None, None, "train"), columns, needs_answers)
    return formed[: len(sources)], formed[len(sources) :]


def _read_reference(
    sources: list[Source], found: list[tuple[str, str | None]] | None, where: str, num_proc: int, report: Report
) -> Reference:
    """Reads evaluation data, or benchmarks with the columns that were found; what cannot be read is a finding."""
    chunks = list(find_chunks(sources))
    sides, problems = [], []
    for some, failed in map_tasks(ReferenceReader(sources, found), chunks, num_proc, f"Reading the {where}"):
        sides += some
        problems += failed
    if problems:
        level, meaning, remedy = FINDING_KINDS[NOT_COMPARED]
        finding = Finding(f"{NOT_COMPARED}: {where}", level, meaning, remedy)
        for position, index, detail in problems:
            finding.add(sources[position], index, detail)
        report.findings.append(finding)
    if not sides:
        position, index, detail = problems[0] if problems else (None, None, None)
        first = f" The first one: {sources[position].row_id(index)}: {detail}" if problems else ""
        names = ", ".join(source.path or source.name for source in sources)
        raise DataError(f"No row of the {where} ({names}) can be read.{first}")
    report.compared[where] = len(dict.fromkeys(name for name, _ in sides))
    return Reference(sides)


def _column_names(source: Source) -> dict[str, None]:
    """Returns the columns of a source: of JSON those of any row, since a row may leave out what it does not have."""
    if source.table is not None:
        return dict.fromkeys(source.table.column_names)
    names = {}
    for chunk in find_chunks([source]):
        for _, row in read_chunk(source, chunk):
            if isinstance(row, dict):
                names |= dict.fromkeys(row)
    return names


def _find_columns(source: Source, question: str | None, image: str | None) -> tuple[str, str | None]:
    """Returns the columns of question and picture of a benchmark."""
    names = list(_column_names(source))
    for option, name in (("--question_column", question), ("--image_column", image)):
        if name is not None and name not in names:
            raise DataError(
                f"`{option} {name}` is not a column of '{source.name}'. Its columns are: {', '.join(names)}."
            )
    question = question or next((name for name in QUESTION_COLUMNS if name in names), None)
    if question is None:
        raise DataError(
            f"'{source.name}' has no column {' or '.join(QUESTION_COLUMNS)}, but: {', '.join(names) or 'none'}. Name "
            "the column of the question with `--question_column`; a file must be JSON lines, a JSON list, csv or "
            "parquet."
        )
    return question, image or next((name for name in IMAGE_COLUMNS if name in names), None)


def _compare_rows(parts: list[ChunkSummary], findings: _Findings, report: Report) -> None:
    """Finds what only shows across rows, and adds up numbers and lengths."""
    sizes = [len(part.index) for part in parts]
    source = np.repeat([part.source for part in parts], sizes)
    index = _join(parts, "index", np.int64)
    pairs = _join(parts, "pairs", np.int8).astype(bool)
    lengths = _join(parts, "lengths", np.int32).reshape(-1, 2)
    pictures = _join(parts, "pictures", np.uint64).reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.uint64)
    users = pictures[:, 0] + np.repeat(starts, [len(part.pictures) // 2 for part in parts])
    report.rows_read = sum(part.rows_read for part in parts)
    report.rows_usable, report.pairs = len(index), int(pairs.sum())
    report.pictures, report.different_pictures = len(pictures), len(np.unique(pictures[:, 1]))
    report.lengths = {
        "text-rich": lengths[pairs, 0],
        "vision-rich": lengths[pairs, 1],
        "one-sided": lengths[~pairs, 0],
    }

    def name(row: int) -> str:
        return findings.sources[source[row]].row_id(index[row])

    def add(kind: str, row: int, detail: str) -> None:
        findings.add(kind, int(source[row]), int(index[row]), detail)

    for position in np.unique(source[pairs]) if len(index) else ():
        for row in np.flatnonzero((source == position) & ~pairs):
            add(NOT_A_PAIR, row, "`instruction_2` and `output_2` are missing or null")
    for row, first in _repeats(_join(parts, "rows", np.uint64)):
        add(DUPLICATE_ROW, row, f"the same as {name(first)}")
    _find_contradictions(parts, add, name)
    for entry, first in _repeats(pictures[:, 1]):
        add(DUPLICATE_PICTURE, int(users[entry]), f"the same as in {name(int(users[first]))}")


def _find_contradictions(
    parts: list[ChunkSummary], add: Callable[[str, int, str], None], name: Callable[[int], str]
) -> None:
    questions, answers = _join(parts, "questions", np.uint64), _join(parts, "answers", np.uint64)
    known = np.flatnonzero((questions != 0) & (answers != 0))
    for row, first in _repeats(questions[known]):
        row, first = known[row], known[first]
        if answers[row] != answers[first]:
            add(CONTRADICTION, row, f"{name(first)} has another answer")


def _join(parts: list[ChunkSummary], field_name: str, dtype: type) -> np.ndarray:
    return np.concatenate([np.frombuffer(getattr(part, field_name), dtype=dtype) for part in parts])


def _repeats(digests: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields each entry that an earlier one is equal to, and the first such one."""
    _, firsts, groups = np.unique(digests, return_index=True, return_inverse=True)
    first_of = firsts[groups]
    for entry in np.flatnonzero(first_of != np.arange(len(digests))):
        yield int(entry), int(first_of[entry])


def _judge_cut(parts: list[ChunkSummary], findings: _Findings) -> None:
    """Tells the share of all pixels that the processor cuts; a warning of pictures needs enough of it."""
    total = sum(part.pixels for part in parts)
    share = sum(part.cut_pixels for part in parts) / total if total else 0.0
    if share <= CUT_SHARE:
        findings.by_kind.pop(CUT_PICTURE, None)
    else:  # then some picture has a finding
        findings.by_kind[
            CUT_PICTURE
        ].meaning = (
            f"The model's processor cuts {share:.1%} of the pixels of all pictures off, which the model does not see."
        )


def _judge_answers(report: Report, share: float) -> None:
    """Makes an error of rows without an answer if no row has one, and some micro-batches would learn from them."""
    for finding in report.findings:
        if finding.kind == WITHOUT_ANSWER and share < 1 and finding.count == report.rows_usable:
            finding.level = ERROR
            finding.meaning = f"No row has an answer, which training needs with `on_policy_share: {share:g}`."
            finding.remedy = "Train with `on_policy_share: 1`, or add rows with answers."


def _judge_chance(report: Report) -> None:
    """Makes a warning of answers among the numbers if chance does not explain them, and orders the findings."""
    for finding in report.findings:
        if finding.kind == leakage.NUMBER_IN_PROMPT:
            if finding.count >= CHANCE_ROWS and finding.count > CHANCE_SHARE * report.rows_usable:
                finding.level = WARNING
                finding.meaning = f"In more than {CHANCE_SHARE:.0%} of the rows the question holds the answer."
    levels = (ERROR, WARNING, NOTE)
    report.findings.sort(key=lambda finding: (levels.index(finding.level), -finding.count))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `puma-trl pairs check`."""
    add_data(parser)
    add_on_policy_share(parser)
    parser.add_argument(
        "--eval", nargs="+", dest="eval_data", help="evaluation data: must share no problem with the data"
    )
    parser.add_argument("--against", nargs="+", help="benchmarks (json, jsonl, csv, parquet) to look for in the data")
    parser.add_argument("--question_column", help=f"column of --against (default: {', '.join(QUESTION_COLUMNS)})")
    parser.add_argument("--image_column", help=f"column of --against (default: {', '.join(IMAGE_COLUMNS)})")
    parser.add_argument("--model", help="folder or Hub name of a model, to count tokens with (default: characters)")
    parser.add_argument("--max_length", type=int, help="limit of the tokens of each side, as in training")
    parser.add_argument(
        "--max_completion_length",
        type=int,
        help=f"as in training: longest sampled answer in tokens (default: {MAX_COMPLETION_LENGTH})",
    )
    add_num_proc(parser)
    parser.add_argument(
        "--write_clean", type=Path, metavar="DIR", help="write the rows without errors and warnings to train.* there"
    )
    parser.add_argument("--output", type=Path, help="json file for all findings with their rows")


def main(args: argparse.Namespace) -> None:
    """Prints the report, writes it if asked to, and exits with 1 if there are errors."""
    options = read_options(args)
    del options["output"]
    if args.output is not None and args.output.suffix.lower() != ".json":
        raise DataError(f"The report would be written to '{args.output}'. Give a name that ends with .json.")
    if args.output is not None:
        check_file(args.output)
    report = check_pairs(**options)
    if args.output is not None:
        write_report(report, args.output)
    print_report(report, args.output)
    if report.has_errors:
        raise SystemExit(1)
