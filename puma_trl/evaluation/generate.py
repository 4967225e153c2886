"""`generate`: items → prompts → `responses.jsonl`, resumable, on one or many processes or through a server."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import EvaluationError
from .benchmarks import Benchmark
from .files import read_jsonl
from .items import load_items
from .pictures import find_pictures, png_address
from .progress import Progress
from .responses import ResponseWriter, id_of, merge_ranks, open_responses, rank_path
from .server import Server
from .settings import ItemSource, ReplySettings, check_sampling


if TYPE_CHECKING:
    from accelerate import PartialState


def run_generate(source: ItemSource, settings: ReplySettings, output: Path, allow_partial: bool = False) -> bool:
    """
    Runs the subcommand: asks for every item that has no response yet.

    Args:
        source ([`ItemSource`]):
            The items.
        settings ([`ReplySettings`]):
            The model and how it replies.
        output (`Path`):
            The responses file.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether to go on without the items that a server does not answer.

    Returns:
        Whether this process is the first of the run, which goes on with the next step.

    Raises:
        EvaluationError: if input is bad, the file was made with other settings, or items stay without answer.
    """
    check_sampling(settings.batch_size, settings.max_new_tokens, settings.temperature, settings.top_p)
    if settings.backend == "openai" and int(os.environ.get("RANK", 0)) > 0:
        return False  # requests are concurrent already; a second rank would ask them again
    benchmark, prompt = source.benchmark, settings.prompt
    items = load_items(benchmark, source.data, source.split, benchmark.columns + benchmark.prompt_columns[prompt])
    texts = [benchmark.build_prompt(item, prompt) for item in items]

    def find() -> Questions:
        pictures = find_pictures(benchmark, items, source.data, source.split, settings.image_root)
        return Questions(benchmark, items, texts, pictures)

    if settings.backend == "openai":
        server = Server(settings, settings.max_new_tokens)
        open_responses(output, describe_run(source, settings))
        _ask_server(find(), settings, server, output, allow_partial)
        return True

    with join_processes() as state:
        if state.is_main_process:
            open_responses(output, describe_run(source, settings))
        with state.local_main_process_first():  # the first one extracts an archive, the others find it
            questions = find()
        state.wait_for_everyone()
        _ask_model(questions, settings, output, state.process_index, state.num_processes)
    if state.is_main_process:
        merge_ranks(output)
    return state.is_main_process


@contextmanager
def join_processes() -> Iterator["PartialState"]:
    """Gives the state of all processes of the run, of which each waits for the others at the end."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # processes on a CPU know of each other only if told that they are on one
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # the ranks wait for the slowest one at the end, which may take longer than the usual ten minutes
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    yield state
    state.wait_for_everyone()
    # Workaround (PyTorch 2.14, pytorch/pytorch#190489): its threads may abort a process that ends with them running
    state.destroy_process_group()


def describe_run(source: ItemSource, settings: ReplySettings) -> dict[str, Any]:
    """Returns what decides the replies, as `responses.settings.json` and the metrics record it."""
    return {
        "benchmark": source.benchmark.name,
        "data": source.data or source.benchmark.hub_id,
        "split": source.split,
        "prompt": settings.prompt,
        "model": settings.model,
        "backend": settings.backend,
        "server": urlsplit(settings.base_url).hostname if settings.base_url else None,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.seed,
        "dtype": settings.dtype,
    }


@dataclass(frozen=True)
class Questions:
    """
    The items of a run and what a model is asked about each.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        items (`list[dict[str, Any]]`):
            Its items.
        texts (`list[str]`):
            Prompt of each.
        pictures (`list[list[Any]]`):
            Pictures of each, as [`open_image`] takes them.
    """

    benchmark: Benchmark
    items: list[dict[str, Any]]
    texts: list[str]
    pictures: list[list[Any]]

    def pending(self, output: Path) -> list[int]:
        """Returns the positions of the items that have no response in the file yet."""
        rows = read_jsonl(output) if output.exists() else ()
        answered = {id_of(row, f"{output}, line {line}") for line, row in rows}
        return [position for position, item in enumerate(self.items) if self.benchmark.item_id(item) not in answered]

    def response(self, position: int, reply: str) -> dict[str, Any]:
        """Returns the row of the responses file; the id is as published, text or number."""
        return {"id": self.items[position][self.benchmark.id_column], "response": reply}

    def make_scorer(self) -> Callable[[int, str], bool]:
        """Returns the running judgement: whether a reply is right by the rules that need no language model."""
        benchmark = self.benchmark
        benchmark.check_items(self.items, allow_partial=True)

        def is_right(position: int, reply: str) -> bool:
            item = self.items[position]
            extraction = benchmark.extract(item, reply, benchmark.default_extraction)
            return extraction is not None and benchmark.is_correct(item, benchmark.normalise(item, extraction))

        return is_right


def _ask_model(questions: Questions, settings: ReplySettings, output: Path, rank: int, num_ranks: int) -> None:
    """Answers this rank's share of the pending items with a transformers model."""
    pending = questions.pending(output)
    if not pending:
        return
    from transformers import set_seed

    from .local_model import Generator, Prompt, load_for_generation

    model, processor = load_for_generation(settings.model, settings.dtype)
    generator = Generator(
        model, processor, settings.batch_size, settings.max_new_tokens, settings.temperature, settings.top_p
    )
    set_seed(settings.seed + rank)
    prompts = [Prompt(questions.texts[position], questions.pictures[position]) for position in pending]
    # batches are the same for every number of ranks; neighbours of similar length go to different ranks
    batches = generator.batches(prompts)[rank::num_ranks]
    is_right = questions.make_scorer()
    own = sum(len(batch) for batch in batches)
    path = output if num_ranks == 1 else rank_path(output, rank)
    with ResponseWriter(path) as writer, Progress("generating", own) as progress:
        for batch in batches:
            replies = generator.answer([prompts[index] for index in batch])
            positions = [pending[index] for index in batch]
            writer.write(map(questions.response, positions, replies))
            progress.advance(len(batch), sum(map(is_right, positions, replies)))


def _ask_server(
    questions: Questions, settings: ReplySettings, server: Server, output: Path, allow_partial: bool
) -> None:
    """Answers the pending items through an OpenAI-compatible server."""
    pending = {questions.benchmark.item_id(questions.items[p]): p for p in questions.pending(output)}
    is_right = questions.make_scorer()

    def ask(position: int) -> str:
        return server.ask(
            chat_messages(questions.texts[position], questions.pictures[position]),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
        )

    failed = 0
    with ResponseWriter(output) as writer:
        running = server.map(pending.items(), ask, "generating", lambda key, reply: is_right(pending[key], reply))
        for key, reply in running:
            failed += reply is None
            if reply is not None:
                writer.write([questions.response(pending[key], reply)])
    if failed:
        message = (
            f"{failed} of {len(questions.items)} items got no answer (reasons above). Run the same command again."
        )
        if not allow_partial:
            raise EvaluationError(message + " Or pass --allow_partial to go on without them.")
        print(message, file=sys.stderr)


def chat_messages(text: str, pictures: list[Any]) -> list[dict[str, Any]]:
    """Returns one user turn with its pictures as PNG data, before the text."""
    content = [{"type": "image_url", "image_url": {"url": png_address(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
