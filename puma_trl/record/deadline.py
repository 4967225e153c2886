"""Calls of the Hub end, also where it accepts a connection and never answers."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from huggingface_hub import get_session


Result = TypeVar("Result")

# Seconds in which nothing is sent or received; the client of huggingface_hub itself waits for ever
SILENCE = 120.0


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

    threading.Thread(target=work, daemon=True).start()
    if not wait([future], seconds).done:
        raise TimeoutError(f"no answer within {seconds:,.0f} seconds")
    return future.result()
