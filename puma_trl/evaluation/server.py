"""Any OpenAI-compatible server (vLLM, SGLang, `transformers serve`, a commercial API), for replies and judgements."""

import asyncio
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from ..errors import EvaluationError, printable
from ..redact import hide_secrets
from .progress import Progress
from .settings import ServerSettings


Key = TypeVar("Key")
Request = TypeVar("Request")
Answer = TypeVar("Answer")

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
# Requests that fail one after another before the run stops: the server is down, not busy.
MAX_FAILURES_IN_A_ROW = 20
REFUSALS = (400, 404, 422, 500, 501)  # of an option that a server does not know, or fails at
MAX_WORDS = 500  # characters of what a server says that are printed


class Server:
    """
    A chat model behind an OpenAI-compatible API.

    The openai client retries timeouts, lost connections, 408, 409, 429 and 5xx with exponential back-off, and waits as
    long as a `Retry-After` header says.

    Args:
        settings ([`ServerSettings`]):
            The model, the address of the API, and the limits of requests.
        max_tokens (`int`):
            Room for a reply, thoughts included.

    Raises:
        EvaluationError: if a limit cannot be one, or the official API is meant and the environment holds no key.
    """

    def __init__(self, settings: ServerSettings, max_tokens: int):
        from openai import AsyncOpenAI

        from .http_client import BoundedClient

        counts = min(settings.concurrency, max_tokens, settings.max_retries + 1)
        if counts < 1 or not 0 < settings.timeout < math.inf:
            raise EvaluationError(
                f"`concurrency` is {settings.concurrency}, `timeout` {settings.timeout}, `max_retries` "
                f"{settings.max_retries} and the room for a reply {max_tokens} tokens: `max_retries` must not be "
                "negative, the others positive."
            )
        key = os.environ.get(KEY_VARIABLE)
        if key is None and settings.base_url is None and URL_VARIABLE not in os.environ:
            raise EvaluationError(
                f"No server to ask {settings.model}: set {KEY_VARIABLE} in the environment for OpenAI's own, or name "
                "the address of another with --base_url (the model under test) or --llm_base_url (extraction and "
                "judge)."
            )
        self.model = settings.model
        self.concurrency = settings.concurrency
        self.max_tokens = max_tokens
        self.has_forms = True  # until a server refuses
        self.client = AsyncOpenAI(
            api_key=key or "none",  # servers of one's own ask for no key, but the client does
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=settings.max_retries,
            http_client=BoundedClient(settings.timeout),
        )
        # one loop for all threads that ask: only such requests can be given up at any moment
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def fingerprint(self, messages: list[dict[str, Any]]) -> str:
        """Returns a key of a chat with this model, under which a file keeps its outcome."""
        return hashlib.sha256(json.dumps([self.model, messages]).encode()).hexdigest()[:32]

    def ask(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """
        Asks once (with the client's retries); an empty reply is "".

        Raises:
            openai.OpenAIError: if the request fails after all retries.
        """
        return self.ask_whole(messages, **options)[0]

    def ask_whole(self, messages: list[dict[str, Any]], **options: Any) -> tuple[str, bool]:
        """
        Asks as [`Server.ask`], and tells as well whether the reply came to its end (`finish_reason` is `"stop"`).

        Raises:
            openai.OpenAIError: if the request fails after all retries.
        """
        from openai import OpenAIError

        try:
            options = {"model": self.model, "max_tokens": self.max_tokens, **options}
            request = self.client.chat.completions.create(messages=messages, **options)
            choice = asyncio.run_coroutine_threadsafe(request, self._loop).result().choices[0]
            reply, is_whole = choice.message.content, choice.finish_reason == "stop"
        except (AttributeError, IndexError, RecursionError, TypeError, ValueError) as error:
            raise OpenAIError(f"the reply is no chat completion ({error})") from error
        if not isinstance(reply, str | None):
            raise OpenAIError(f"the reply is no text but {reply!r}")
        return reply or "", is_whole

    def ask_in_form(self, messages: list[dict[str, Any]], name: str, schema: dict[str, Any], **options: Any) -> str:
        """
        Asks for a reply in a form, and without the form where the server knows none.

        Raises:
            openai.OpenAIError: if the request fails after all retries.
        """
        from openai import APIStatusError

        if self.has_forms:
            form = {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
            try:
                return self.ask(messages, response_format=form, **options)
            except APIStatusError as error:
                if error.status_code not in REFUSALS:
                    raise
            reply = self.ask(messages, **options)
            self.has_forms = False  # the form was what it refused
            return reply
        return self.ask(messages, **options)

    def map(
        self,
        requests: Iterable[tuple[Key, Request]],
        ask: Callable[[Request], Answer],
        title: str,
        is_right: Callable[[Key, Answer], bool] | None = None,
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
            is_right (`Callable[[Key, Answer], bool]`, *optional*):
                Judges an answer for the accuracy that the bar shows.

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
                    answer = self._result(future, key, progress)
                    failures = 0 if future.exception() is None else failures + 1
                    judged = is_right is not None and answer is not None
                    progress.advance(1, int(is_right(key, answer)) if judged else None)
                    yield key, answer
                if failures >= MAX_FAILURES_IN_A_ROW:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise EvaluationError(
                        f"{failures} requests to {self.client.base_url} failed one after another; the last reason is "
                        "above. What was answered is kept: run the same command again once the server is well."
                    )

    def _result(self, future: "Future[Answer]", key: Any, progress: Progress) -> Answer | None:
        from openai import OpenAIError

        try:
            return future.result()
        except OpenAIError as error:
            words = hide_secrets(f"{type(error).__name__}: {' '.join(str(error).split())}")  # servers echo keys
            words = words[:MAX_WORDS] + "…" * (len(words) > MAX_WORDS)
            server = hide_secrets(str(self.client.base_url))
            progress.say(printable(f"{key}: no answer from {server} ({words})"))
            return None
