"""`generate`: items → prompts → `responses.jsonl`, resumable, on one or many processes or through a server."""

import argparse
import base64
import io
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ..data.images import open_image
from ..errors import EvaluationError
from .files import read_jsonl
from .items import BENCHMARKS, item_id, load_items
from .pictures import find_pictures
from .progress import Progress
from .responses import ResponseWriter, merge_ranks, rank_path, read_settings, repair_last_line, write_settings
from .server import Server


Scorer = Callable[[int, str], bool]


def run_generate(args: argparse.Namespace, output: Path) -> bool:
    """
    Runs the subcommand: asks for every item that has no response yet.

    Args:
        args (`argparse.Namespace`):
            The options of the subcommand.
        output (`Path`):
            The responses file.

    Returns:
        Whether this process is the first of the run, which goes on with the next step.

    Raises:
        EvaluationError: if input is bad, the file was made with other settings, or items stay without answer.
    """
    if args.backend == "openai" and int(os.environ.get("RANK", 0)) > 0:
        return False  # requests are concurrent already; a second rank would ask them again
    benchmark = BENCHMARKS[args.benchmark]
    items = load_items(benchmark, args.data, args.split, benchmark.COLUMNS + benchmark.PROMPT_COLUMNS[args.prompt])
    texts = [benchmark.build_prompt(item, args.prompt) for item in items]
    if args.backend == "openai":
        server = Server(args.model, args.base_url, args.concurrency, args.timeout, args.max_retries)
        _open_responses(args, output)
        pictures = find_pictures(benchmark, items, args.data, args.split, args.image_root)
        _ask_server(args, benchmark, items, texts, pictures, server, output)
        return True

    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # processes on a CPU know of each other only if told that they are on one
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # the ranks wait for the slowest one at the end, which may take longer than the usual ten minutes
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    if state.is_main_process:
        _open_responses(args, output)
    with state.local_main_process_first():  # the first one extracts an archive, the others find it
        pictures = find_pictures(benchmark, items, args.data, args.split, args.image_root)
    state.wait_for_everyone()
    _ask_model(args, benchmark, items, texts, pictures, output, state.process_index, state.num_processes)
    state.wait_for_everyone()
    state.destroy_process_group()  # its threads may abort a process that ends with them running
    if state.is_main_process:
        merge_ranks(output)
    return state.is_main_process


def describe_run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what decides the replies, as `responses.settings.json` and the metrics record it."""
    return {
        "benchmark": args.benchmark,
        "data": args.data or BENCHMARKS[args.benchmark].HUB_ID,
        "split": args.split,
        "prompt": args.prompt,
        "model": args.model,
        "backend": args.backend,
        "server": urlsplit(args.base_url).hostname if args.base_url else None,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "seed": args.seed,
        "dtype": args.dtype,
    }


def _open_responses(args: argparse.Namespace, output: Path) -> None:
    """Repairs what a killed run left, and makes sure that the file was made with the same settings."""
    settings, before = describe_run(args), read_settings(output)
    merge_ranks(output)
    repair_last_line(output)
    different = [name for name in settings if before and before.get(name) != settings[name]]
    if different and output.exists():
        changes = ", ".join(f"{name} {before.get(name)!r} -> {settings[name]!r}" for name in different)
        raise EvaluationError(
            f"{output} was made with other settings ({changes}). Choose another output, or delete the file to start "
            "again."
        )
    write_settings(output, settings)


def _pending(benchmark: ModuleType, items: list[dict[str, Any]], output: Path) -> list[int]:
    """Returns the positions of the items that have no response yet."""
    answered = {str(row["id"]) for _, row in read_jsonl(output)} if output.exists() else set()
    return [position for position, item in enumerate(items) if item_id(benchmark, item) not in answered]


def _make_scorer(benchmark: ModuleType, items: list[dict[str, Any]]) -> Scorer:
    """Returns the running judgement: whether a reply is right by the rules that need no language model."""
    benchmark.check_items(items, allow_partial=True)

    def is_right(position: int, reply: str) -> bool:
        item = items[position]
        extraction = benchmark.extract(item, reply, benchmark.DEFAULT_EXTRACTION)
        return extraction is not None and benchmark.is_correct(item, benchmark.normalise(item, extraction))

    return is_right


def _ask_model(
    args: argparse.Namespace,
    benchmark: ModuleType,
    items: list[dict[str, Any]],
    texts: list[str],
    pictures: list[list[Any]],
    output: Path,
    rank: int,
    num_ranks: int,
) -> None:
    """Answers this rank's share of the pending items with a transformers model."""
    pending = _pending(benchmark, items, output)
    if not pending:
        return
    from transformers import set_seed

    from .local_model import Generator, Prompt, load_for_generation

    model, processor = load_for_generation(args.model, args.dtype)
    generator = Generator(model, processor, args.batch_size, args.max_new_tokens, args.temperature, args.top_p)
    set_seed(args.seed + rank)
    prompts = [Prompt(texts[position], pictures[position]) for position in pending]
    # batches are the same for every number of ranks; neighbours of similar length go to different ranks
    batches = generator.batches(prompts)[rank::num_ranks]
    is_right = _make_scorer(benchmark, items)
    own = sum(len(batch) for batch in batches)
    path = output if num_ranks == 1 else rank_path(output, rank)
    with ResponseWriter(path) as writer, Progress("generating", own, disable=rank > 0) as progress:
        for batch in batches:
            replies = generator.answer([prompts[index] for index in batch])
            positions = [pending[index] for index in batch]
            writer.write(
                {"id": items[position][benchmark.ID], "response": reply}
                for position, reply in zip(positions, replies, strict=True)
            )
            progress.advance(len(batch), sum(map(is_right, positions, replies)))


def _ask_server(
    args: argparse.Namespace,
    benchmark: ModuleType,
    items: list[dict[str, Any]],
    texts: list[str],
    pictures: list[list[Any]],
    server: Server,
    output: Path,
) -> None:
    """Answers the pending items through an OpenAI-compatible server."""
    pending = {item_id(benchmark, items[position]): position for position in _pending(benchmark, items, output)}
    is_right = _make_scorer(benchmark, items)

    def ask(position: int) -> str:
        return server.ask(
            chat_messages(texts[position], pictures[position]),
            temperature=args.temperature,
            max_tokens=args.max_new_tokens,
            top_p=args.top_p,
            seed=args.seed,
        )

    failed = 0
    with ResponseWriter(output) as writer:
        running = server.map(pending.items(), ask, "generating", lambda key, reply: is_right(pending[key], reply))
        for key, reply in running:
            failed += reply is None
            if reply is not None:
                writer.write([{"id": items[pending[key]][benchmark.ID], "response": reply}])
    if failed:
        message = f"{failed} of {len(items)} items got no answer (reasons above). Run the same command again."
        if not args.allow_partial:
            raise EvaluationError(message + " Or pass --allow_partial to go on without them.")
        print(message, file=sys.stderr)


def chat_messages(text: str, pictures: list[Any]) -> list[dict[str, Any]]:
    """Returns one user turn with its pictures as PNG data, before the text."""
    content = []
    for picture in pictures:
        buffer = io.BytesIO()
        open_image(picture).save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
