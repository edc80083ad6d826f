"""The listeners: gRPC on a TCP port and a UNIX socket, REST on a separate TCP port."""

import socket
import threading
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import uvicorn

from serving.config import files
from serving.config.flags import Options
from serving.errors import ServingError, invalid
from serving.grpc_api import services
from serving.grpc_api.services import Backend

if TYPE_CHECKING:
    from starlette.applications import Starlette

# Threads in addition to those of running and waiting requests: they answer health, status and metadata requests, and
# refuse requests above the limits.
SPARE_THREADS = 32
ANY_PORT = -1
# Common clients and proxies close idle HTTP connections earlier, so none of them sends a request to a connection that
# this server is closing.
KEEP_ALIVE_SECONDS = 90
# The keepalive settings detect clients that disappeared, and drop their unfinished requests.
CHANNEL_ARGUMENTS = {
    "grpc.so_reuseport": 0,
    "grpc.max_send_message_length": -1,
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.http2.min_ping_interval_without_data_ms": 5_000,
}


def check_port(host: str, port: int) -> None:
    """Raise ServingError if the server cannot listen on a port.

    Called before the models are loaded, which takes long.
    """
    _bound_socket(host, port).close()


class Grpc:
    """The gRPC server; it is bound when created and answers from `start` to `stop`."""

    def __init__(self, options: Options, backend: Backend, max_requests: int):
        """Bind the port and the socket.

        `max_requests` is the number of requests that may run and wait. Raises ServingError if the port or socket cannot
        be bound, UserError if the SSL configuration cannot be read.
        """
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_requests + SPARE_THREADS, "grpc"),
            handlers=services.handlers(backend, options.enable_serialization_as_tensor_content, options.log_requests),
            options=list(channel_arguments(options).items()),
        )
        self.health = services.add_health(self._server) if options.enable_grpc_healthcheck_service else None
        services.add_reflection(self._server, self.health is not None)
        self.port = 0
        if options.port:
            address = f"[{options.host}]" if ":" in options.host else options.host
            self.port = self._listen(f"{address}:{max(0, options.port)}", options)
        self.socket_path = options.grpc_socket_path
        if self.socket_path:
            _check_socket_free(self.socket_path)
            self._listen(f"unix:{self.socket_path}", options)

    def _listen(self, address: str, options: Options) -> int:
        config = files.read_ssl(options)
        try:
            if config is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(
                address,
                grpc.ssl_server_credentials(
                    [(config.server_key.encode(), config.server_cert.encode())],
                    config.custom_ca.encode() or None,
                    config.client_verify,
                ),
            )
        except (RuntimeError, ValueError) as error:
            keys = f", or the keys and certificates in {options.ssl_config_file} are invalid" if config else ""
            raise ServingError(
                grpc.StatusCode.UNAVAILABLE, f"cannot listen on {address}: it may be in use{keys} ({error})"
            ) from None

    def start(self) -> None:
        """Begin to answer requests."""
        self._server.start()

    def drain(self) -> None:
        """Report NOT_SERVING to health checks, so that clients choose another server."""
        if self.health:
            self.health.enter_graceful_shutdown()

    def stop(self, grace_seconds: float) -> threading.Event:
        """Refuse new requests and cancel running ones after the grace period.

        The returned event is set once no request runs.
        """
        return self._server.stop(grace_seconds)


class Rest:
    """The HTTP server of the REST application; it is bound when created and answers from `start` to `stop`."""

    def __init__(self, options: Options, application: "Starlette"):
        """Bind the port; raises ServingError if it cannot be bound."""
        self._socket = _bound_socket(options.host, options.rest_api_port)
        self.port = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, int(options.grace_seconds)),
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="rest", daemon=True
        )

    def start(self) -> None:
        """Begin to accept connections and answer them in a separate thread."""
        self._socket.listen(2048)
        self._thread.start()

    def stop(self) -> None:
        """Refuse new requests and wait for running ones, at most for the grace period."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


def channel_arguments(options: Options) -> dict[str, int | str]:
    """Return the settings of the gRPC server; those of grpc_channel_arguments override others.

    Like in tensorflow_model_server, a value that is an integer is passed as one. Raises ServingError if
    grpc_channel_arguments is not KEY=VALUE,...
    """
    arguments = CHANNEL_ARGUMENTS | {"grpc.max_receive_message_length": options.max_request_bytes}
    for pair in filter(None, options.grpc_channel_arguments.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise invalid(f"grpc_channel_arguments: {pair!r} is not KEY=VALUE")
        try:
            arguments[key] = int(value)
        except ValueError:
            arguments[key] = value
    return arguments


def _bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket bound to a port, or to any free one for ANY_PORT, that does not listen yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY, which sends responses without waiting for the client's acknowledgement, only on sockets
    # with an explicit protocol.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A server can start again although connections closed in the last minute; a listening server still blocks it.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, 0 if port == ANY_PORT else port))
    except OSError as error:
        bound.close()
        raise ServingError(
            grpc.StatusCode.UNAVAILABLE, f"cannot listen on port {port} of {host}: {error.strerror}"
        ) from None
    return bound


def _check_socket_free(path: str) -> None:
    """Raise ServingError if another server answers on a UNIX socket, which gRPC would replace."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            if Path(path).exists() and not Path(path).is_socket():
                raise invalid(f"grpc_socket_path: {path} is not a socket") from None
            return
    raise ServingError(grpc.StatusCode.UNAVAILABLE, f"cannot listen on {path}: another server uses it")
