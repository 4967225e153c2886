"""Calls of the Hub: they end, also where it never answers, and their errors hold no secrets."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from huggingface_hub import HfApi, get_session

from ..redact import hide_secrets


Result = TypeVar("Result")

# Seconds in which nothing is sent or received; the client of huggingface_hub itself waits for ever
SILENCE = 120.0
# Seconds for the requests before any work, and for a push without its bytes; bytes per second at the least
LOGIN_SECONDS, PUSH_SECONDS, SLOWEST = 60.0, 600.0, 1e6
# Name of the threads that calls run in
THREAD = "call of the Hub"


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """
    Returns what a call of the Hub returns, if it does so in time; else it is left behind, in a thread that ends with
    the process at the latest.

    Args:
        seconds (`float`):
            The time for all requests that the call makes, and all tries of them.
        call (`Callable`):
            The call.

    Raises:
        TimeoutError: if the call takes longer.
    """
    get_session().timeout = SILENCE
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name=THREAD, daemon=True).start()
    if not wait([future], seconds).done:
        raise TimeoutError(f"no answer within {seconds:,.0f} seconds")
    return future.result()


def push_within(size: int, call: Callable[[], Result]) -> Result:
    """Returns what a call returns that uploads `size` bytes, if it does so in time (see [`within`])."""
    return within(PUSH_SECONDS + size / SLOWEST, call)


def describe_failure(api: HfApi, error: Exception) -> str:
    """Returns at which Hub a call failed and why, on one line; a server may have sent back the request's headers."""
    return hide_secrets(f"at {api.endpoint}: {' '.join(str(error).split()) or type(error).__name__}")
