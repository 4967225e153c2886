"""Any OpenAI-compatible server (vLLM, SGLang, `transformers serve`, a commercial API), for replies and judgements."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from .errors import EvaluationError
from .progress import Progress


Key = TypeVar("Key")
Request = TypeVar("Request")
Answer = TypeVar("Answer")

KEY_VARIABLE = "OPENAI_API_KEY"
# Requests that fail one after another before the run stops: the server is down, not busy.
MAX_FAILURES_IN_A_ROW = 20


class Server:
    """
    A chat model behind an OpenAI-compatible API.

    The openai client retries timeouts, lost connections, 408, 409, 429 and 5xx with exponential back-off, and waits as
    long as a `Retry-After` header says.

    Args:
        model (`str`):
            Name of the model at the server.
        base_url (`str`, *optional*):
            Address of the API, such as `http://127.0.0.1:8000/v1`. Defaults to the openai client's.
        concurrency (`int`, *optional*, defaults to `8`):
            Largest number of requests under way.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds that one try may take.
        max_retries (`int`, *optional*, defaults to `5`):
            Tries after the first.

    Raises:
        EvaluationError: if the official API is meant and the environment holds no key.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        max_retries: int = 5,
    ):
        from openai import OpenAI

        key = os.environ.get(KEY_VARIABLE)
        if key is None and base_url is None:
            raise EvaluationError(
                f"No server: set {KEY_VARIABLE} in the environment, or name a server with --base_url."
            )
        self.model = model
        self.concurrency = concurrency
        # servers of one's own ask for no key, but the client does
        self.client = OpenAI(api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=max_retries)

    @classmethod
    def from_args(cls, args: argparse.Namespace, model: str | None) -> "Server":
        """Makes the server that the command line describes."""
        if model is None:
            raise EvaluationError("A server needs the name of a model: pass --judge_model (or --llm for extraction).")
        return cls(model, args.base_url, args.concurrency, args.timeout, args.max_retries)

    def ask(self, messages: list[dict[str, Any]], temperature: float = 0.0, max_tokens: int = 512) -> str:
        """
        Asks once (with the client's retries).

        Raises:
            openai.OpenAIError: if the request fails after all retries.
        """
        completion = self.client.chat.completions.create(
            model=self.model, messages=messages, temperature=temperature, max_tokens=max_tokens
        )
        return completion.choices[0].message.content or ""

    def map(
        self, requests: Iterable[tuple[Key, Request]], ask: Callable[[Request], Answer], title: str
    ) -> Iterator[tuple[Key, Answer | None]]:
        """
        Asks many requests with bounded concurrency.

        Args:
            requests (`Iterable[tuple[Key, Request]]`):
                Keys and what to ask; taken as places become free.
            ask (`Callable[[Request], Answer]`):
                Asks one request, in a thread.
            title (`str`):
                Words of the progress bar.

        Yields:
            (key, answer) as answers come; the answer is `None` where the request failed for good (said on stderr).

        Raises:
            EvaluationError: after `MAX_FAILURES_IN_A_ROW` failures without an answer between them.
        """
        requests = list(requests)
        waiting = iter(requests)
        failures = 0
        with ThreadPoolExecutor(self.concurrency) as pool, Progress(title, len(requests)) as progress:
            running: dict[Future, Key] = {}
            while True:
                while len(running) < self.concurrency and (request := next(waiting, None)) is not None:
                    running[pool.submit(ask, request[1])] = request[0]
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    key = running.pop(future)
                    answer = self._result(future, key)
                    failures = 0 if future.exception() is None else failures + 1
                    progress.advance()
                    yield key, answer
                if failures >= MAX_FAILURES_IN_A_ROW:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise EvaluationError(
                        f"{failures} requests to {self.client.base_url} failed one after another; the last reason is "
                        "above. What was answered is kept: run the same command again once the server is well."
                    )

    def _result(self, future: "Future[Answer]", key: Any) -> Answer | None:
        from openai import OpenAIError

        try:
            return future.result()
        except OpenAIError as error:
            print(f"{key}: no answer from {self.client.base_url} ({type(error).__name__}: {error})", file=sys.stderr)
            return None
