"""Read the bodies of HTTP requests within limits of size, time and memory.

All functions run on the event loop.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from starlette.types import Receive

from serving.errors import ServingError

TOO_LARGE, TIMEOUT, DISCONNECTED = 413, 408, 499


class RestFailure(Exception):
    """A request answered with an error.

    Attributes:
        http: HTTP status of the response.
        code: Name of the gRPC status, for metrics and logs.
        message: Text that the client reads.
    """

    def __init__(self, http: int, code: str, message: str):
        super().__init__(message)
        self.http, self.code, self.message = http, code, message


def too_large(limit: int) -> RestFailure:
    """Return the failure of a body above --max_request_bytes."""
    return RestFailure(TOO_LARGE, "INVALID_ARGUMENT", f"The request is larger than {limit} bytes (--max_request_bytes)")


def disconnected() -> RestFailure:
    """Return the failure of a request whose client has disconnected."""
    return RestFailure(DISCONNECTED, "CANCELLED", "The client disconnected")


class Intake:
    """Number of requests that the server holds, and of the bytes of their bodies; refuses more than its limits."""

    def __init__(self, max_requests: int, max_bytes: int):
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self.requests, self.bytes = 0, 0

    @contextmanager
    def reserve(self) -> Iterator["Reservation"]:
        """Count a request until the context exits; raises ServingError RESOURCE_EXHAUSTED."""
        if self.requests >= self._max_requests:
            raise ServingError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The server is busy: {self.requests} requests are running or waiting",
            )
        reservation = Reservation(self)
        self.requests += 1
        try:
            yield reservation
        finally:
            self.requests -= 1
            self.bytes -= reservation.bytes

    def add_bytes(self, size: int) -> None:
        """Count further bytes; raises ServingError RESOURCE_EXHAUSTED."""
        if self.bytes + size > self._max_bytes:
            raise ServingError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "The server is busy: with this request, running and waiting requests would hold "
                f"{self.bytes + size} bytes, above {self._max_bytes}",
            )
        self.bytes += size


class Reservation:
    """Bytes of an Intake that one request holds."""

    def __init__(self, intake: Intake):
        self._intake, self.bytes = intake, 0

    def grow_to(self, size: int) -> None:
        """Hold at least `size` bytes in total; raises ServingError RESOURCE_EXHAUSTED."""
        if size > self.bytes:
            self._intake.add_bytes(size - self.bytes)
            self.bytes = size


async def read(
    receive: Receive, content_length: str | None, reservation: Reservation, limit: int, seconds: float
) -> list[bytes]:
    """Return the chunks of a request body.

    Args:
        receive: The request's ASGI channel.
        content_length: Value of the Content-Length header, None without one.
        reservation: Holds the bytes of the body.
        limit: Maximum size of the body in bytes.
        seconds: Time limit for the whole body.

    Raises:
        RestFailure: The body is above the limit or too slow, or the client disconnected.
        ServingError: RESOURCE_EXHAUSTED, if the server holds too many bytes.
    """
    # A header that announces too much is refused before any of the body is read.
    if content_length and int(content_length) > limit:
        raise too_large(limit)
    reservation.grow_to(int(content_length or 0))
    chunks, size, more = [], 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise disconnected()
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise too_large(limit)
                reservation.grow_to(size)
                chunks.append(chunk)
                more = message.get("more_body", False)
    except TimeoutError:
        raise RestFailure(TIMEOUT, "DEADLINE_EXCEEDED", f"The request did not arrive within {seconds} s") from None
    return chunks
