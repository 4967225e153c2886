"""The HTTP client below [`Server`]: a try ends in time as a whole, and a reply has an end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from openai import DefaultAsyncHttpxClient, OpenAIError


MAX_BYTES = 1 << 24  # of a reply


class BoundedClient(DefaultAsyncHttpxClient):
    """
    A client whose requests end, whatever the server sends: the timeout of httpx starts anew at every byte.

    Args:
        seconds (`float`):
            What one try may take, from the connection to the last byte of the reply.
    """

    def __init__(self, seconds: float):
        # a small compressed reply may become a large one
        super().__init__(headers={"Accept-Encoding": "identity"}, event_hooks={"response": [_bound]})
        self.seconds = seconds

    async def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        try:
            return await asyncio.wait_for(super().send(request, **kwargs), self.seconds)
        except asyncio.TimeoutError as error:
            raise httpx2.ReadTimeout(f"no reply within {self.seconds:g} s", request=request) from error


async def _bound(response: httpx2.Response) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise OpenAIError("the reply is compressed, which was not asked for")
    response.stream = _BoundedStream(response.stream)


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream):
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self.stream:
            size += len(part)
            if size > MAX_BYTES:
                raise OpenAIError(f"the reply has more than {MAX_BYTES:,} bytes")
            yield part

    async def aclose(self) -> None:
        await self.stream.aclose()
