"""Taking the bodies of HTTP requests: how large each may be, and how much of them is held at once.

All of it runs on the event loop.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from starlette.types import Receive

from serving.errors import ServingError

TOO_LARGE, TIMEOUT, HUNG_UP = 413, 408, 499


class Failure(Exception):
    """A request that ends in an error: its status in HTTP, its code in the metrics, and the message."""

    def __init__(self, http: int, code: str, message: str):
        super().__init__(message)
        self.http, self.code, self.message = http, code, message


def too_large(limit: int) -> Failure:
    """Return the failure of a body above --max_request_bytes."""
    return Failure(TOO_LARGE, "INVALID_ARGUMENT", f"The request is larger than {limit} bytes (--max_request_bytes)")


def hung_up() -> Failure:
    """Return the failure of a request whose client is gone."""
    return Failure(HUNG_UP, "CANCELLED", "The client hung up")


class Intake:
    """How many requests are held, and how many bytes of them; what is above either is refused."""

    def __init__(self, most_requests: int, most_bytes: int):
        self._most_requests, self._most_bytes = most_requests, most_bytes
        self.requests, self.bytes = 0, 0

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """Hold a request until the end; raises ServingError, RESOURCE_EXHAUSTED."""
        if self.requests >= self._most_requests:
            raise ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED,
                               f"The server is busy: {self.requests} requests run and wait")
        place = Place(self)
        self.requests += 1
        try:
            yield place
        finally:
            self.requests -= 1
            self.bytes -= place.bytes

    def take(self, size: int) -> None:
        """Hold so many bytes more; raises ServingError, RESOURCE_EXHAUSTED."""
        if self.bytes + size > self._most_bytes:
            raise ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED,
                               f"The server is busy: requests that run and wait would with this one hold "
                               f"{self.bytes + size} bytes, above {self._most_bytes}")
        self.bytes += size


class Place:
    """What one request holds of an Intake."""

    def __init__(self, intake: Intake):
        self._intake, self.bytes = intake, 0

    def reach(self, size: int) -> None:
        """Hold that many bytes altogether; raises ServingError, RESOURCE_EXHAUSTED."""
        if size > self.bytes:
            self._intake.take(size - self.bytes)
            self.bytes = size


async def read(receive: Receive, length: str | None, place: Place, limit: int, seconds: float) -> list[bytes]:
    """Return the parts of a body; `length` is what its Content-Length says.

    Raises Failure where it is above `limit`, comes too slowly or ends too early, ServingError where too much is held.
    """
    # As soon as a header tells, nothing of the body is read.
    if length and int(length) > limit:
        raise too_large(limit)
    place.reach(int(length or 0))
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise hung_up()
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise too_large(limit)
                place.reach(size)
                parts.append(part)
                more = message.get("more_body", False)
    except TimeoutError:
        raise Failure(TIMEOUT, "DEADLINE_EXCEEDED", f"The request did not arrive within {seconds} s") from None
    return parts
