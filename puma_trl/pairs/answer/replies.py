"""Problems → replies in a progress file, on one or many processes or through a server; none is asked for twice."""

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...data.places import IMAGE_PLACE
from ...data.texts import shorten
from ...errors import EvaluationError
from ...evaluation.files import read_jsonl
from ...evaluation.generate import chat_messages, join_processes
from ...evaluation.local_model import Prompt
from ...evaluation.progress import Progress
from ...evaluation.responses import (
    ResponseWriter,
    merge_ranks,
    open_responses,
    rank_path,
    read_settings,
    settings_path,
)
from ...evaluation.server import Server
from ...evaluation.settings import ReplySettings
from .problems import Problem, digest


REPLY = {"id": int, "row_id": str, "sample": int, "response": str, "is_cut": bool}  # columns of the progress file


@dataclass(frozen=True)
class Asking:
    """
    What is asked, how, and where the replies are kept.

    Args:
        problems (`list[Problem]`):
            The problems.
        side (`str`):
            The side that is asked: one of `SIDES`.
        num_samples (`int`):
            Replies to each problem.
        settings ([`ReplySettings`]):
            The model and how it replies.
        progress (`Path`):
            The file of replies.
    """

    problems: list[Problem]
    side: str
    num_samples: int
    settings: ReplySettings
    progress: Path

    def seed(self, position: int) -> str:
        """Returns the seed of a reply, which its row and its number alone decide."""
        row, sample = divmod(position, self.num_samples)
        return f"{self.settings.seed} {self.problems[row].row_id} {sample + 1}"

    def prompt(self, position: int) -> Prompt:
        """Returns what is asked for a reply."""
        return self.problems[position // self.num_samples].prompt(self.side)

    def row(self, position: int, reply: str, is_cut: bool) -> dict[str, Any]:
        """Returns the row of the progress file for a reply."""
        row, sample = divmod(position, self.num_samples)
        names = {"id": position, "row_id": self.problems[row].row_id, "sample": sample + 1}
        return names | {"response": reply, "is_cut": is_cut}

    @property
    def total(self) -> int:
        """The number of replies in all."""
        return len(self.problems) * self.num_samples

    def read(self) -> dict[int, dict[str, Any]]:
        """Returns number → row of the replies so far; of a batch that was written twice the first."""
        rows: dict[int, dict[str, Any]] = {}
        for line, row in read_jsonl(self.progress) if self.progress.exists() else ():
            if any(type(row.get(name)) is not kind for name, kind in REPLY.items()):
                raise EvaluationError(
                    f"{self.progress}, line {line}: a reply has {', '.join(REPLY)}, but this row is "
                    f"{shorten(str(row))}. Delete the line: its reply is asked for again."
                )
            rows.setdefault(row["id"], row)
        return rows

    def open(self) -> None:
        """
        Repairs what a killed run has left.

        Raises:
            EvaluationError: if the replies so far were made with other settings.
        """
        if not read_settings(self.progress) and self.progress.exists():
            raise EvaluationError(
                f"{self.progress} has replies, but {settings_path(self.progress).name}, which says how they were "
                "made, is not beside it. Put it back, choose another `--output`, or delete the file to start again."
            )
        open_responses(self.progress, self._describe())

    def _describe(self) -> dict[str, Any]:
        """Returns what decides the replies; the size of batches may change where they turn out too large."""
        names = ("model", "backend", "max_new_tokens", "temperature", "top_p", "seed", "dtype")
        url = self.settings.base_url
        return {name: getattr(self.settings, name) for name in names} | {
            "weights": _stamp(Path(self.settings.model)),
            "server": urlsplit(url).hostname if url else None,
            "data": digest(self.problems, self.side),
            "side": self.side,
            "n": self.num_samples,
        }


def _stamp(folder: Path) -> str | None:
    """Returns what changes with the weights in a folder, `None` for a model of elsewhere."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16] if facts else None


def ask_model(asking: Asking) -> bool:
    """
    Asks a transformers model, on all processes of the run.

    Returns:
        Whether this process is the first of the run, and so goes on.

    Raises:
        EvaluationError: if the model cannot be loaded, or earlier replies were made with other settings.
    """
    with join_processes() as state:
        if state.is_main_process:
            asking.open()
        state.wait_for_everyone()
        _ask_share(asking, state.process_index, state.num_processes)
    if state.is_main_process:
        merge_ranks(asking.progress)
    return state.is_main_process


def _ask_share(asking: Asking, rank: int, num_ranks: int) -> None:
    """Answers this rank's share of the batches that are not whole."""
    done = asking.read()
    if len(done) == asking.total:
        return
    from ...evaluation.local_model import load_for_generation
    from .sampling import Sampler

    settings = asking.settings
    sampler = Sampler(
        *load_for_generation(settings.model, settings.dtype),
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
    )
    prompts = [asking.prompt(position) for position in range(asking.total)]
    # of all replies, whatever is there: the neighbours in a batch may change the last bits of a reply's probabilities
    batches = [batch for batch in sampler.batches(prompts) if not all(position in done for position in batch)]
    own = batches[rank::num_ranks]
    path = asking.progress if num_ranks == 1 else rank_path(asking.progress, rank)
    with ResponseWriter(path) as writer, Progress("answering", sum(map(len, own))) as progress:
        for batch in own:
            seeds = [asking.seed(position) for position in batch]
            replies = sampler.sample([prompts[position] for position in batch], seeds)
            writer.write(asking.row(each, reply, reply.is_cut) for each, reply in zip(batch, replies, strict=True))
            progress.advance(len(batch))


def ask_server(asking: Asking) -> bool:
    """
    Asks an OpenAI-compatible server, of several processes the first one.

    Returns:
        Whether this process is the first of the run, and so goes on.

    Raises:
        EvaluationError: if replies are missing in the end, or earlier ones were made with other settings.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        return False  # requests are concurrent already
    settings = asking.settings
    server = Server(settings, settings.max_new_tokens)
    asking.open()
    done = asking.read()
    pending = [(position, position) for position in range(asking.total) if position not in done]

    def ask(position: int) -> tuple[str, bool]:
        return server.ask_whole(
            write_chat(asking.prompt(position)),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=random.Random(asking.seed(position)).getrandbits(31),
        )

    failed = 0
    with ResponseWriter(asking.progress) as writer:
        for position, said in server.map(pending, ask, "answering"):
            failed += said is None
            if said is not None:
                writer.write([asking.row(position, said[0].strip(), not said[1])])
    if failed:
        raise EvaluationError(
            f"{failed:,} of {asking.total:,} requests got no answer (reasons above). Run the same command again."
        )
    return True


def write_chat(prompt: Prompt) -> list[dict[str, Any]]:
    """Returns the turns of a prompt for a server, the pictures as PNG data at their places, or else first of all."""
    turns = [*prompt.history, {"role": "user", "content": prompt.text}]
    pictures = [part for picture in prompt.images for part in chat_messages("", [picture])[0]["content"][:1]]
    has_places = any(IMAGE_PLACE in turn["content"] for turn in turns if turn["role"] == "user")
    first, following = ([], iter(pictures)) if has_places else (pictures, iter(()))
    chat = []
    for turn in turns:
        if turn["role"] != "user":
            chat.append({"role": turn["role"], "content": turn["content"]})
            continue
        content, first = [*first], []
        for number, text in enumerate(turn["content"].split(IMAGE_PLACE)):
            content += [next(following)] if number else []
            content += [{"type": "text", "text": text}] if text else []
        chat.append({"role": "user", "content": content})
    return chat


def group_replies(asking: Asking) -> Sequence[list[dict[str, Any]]]:
    """Returns the replies to each problem, in the order of their numbers."""
    rows = asking.read()
    count = asking.num_samples
    return [[rows[start + sample] for sample in range(count)] for start in range(0, asking.total, count)]
