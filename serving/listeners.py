"""What listens: gRPC on a port and a UNIX socket, REST on a port of its own."""

import socket
import threading
from concurrent import futures
from pathlib import Path

import grpc
import uvicorn

from serving.config import files
from serving.config.flags import Options
from serving.errors import ServingError, invalid
from serving.grpc_api import services
from serving.grpc_api.services import Backend

# Threads beyond those that run and wait, for health, status and metadata, and to refuse what is too much.
SPARE_THREADS = 32
ANY = -1
# Seconds that an idle HTTP connection is kept: longer than usual clients and proxies keep theirs, so that none of them
# sends a request into one that is being closed.
KEEP_ALIVE = 90
# A client that vanished without a word is noticed, and its half request given up.
CHANNEL = {"grpc.so_reuseport": 0, "grpc.max_send_message_length": -1, "grpc.keepalive_time_ms": 60_000,
           "grpc.keepalive_timeout_ms": 20_000, "grpc.http2.min_ping_interval_without_data_ms": 5_000}


def check_free(host: str, port: int) -> None:
    """Raise ServingError where a port cannot be listened on, before models are loaded for nothing."""
    _bound(host, port).close()


class Grpc:
    """The gRPC server, bound; it answers from `start` to `stop`."""

    def __init__(self, options: Options, parts: Backend, requests: int):
        """`requests`: how many may run and wait; raises ServingError or UserError where it cannot listen so."""
        self._server = grpc.server(
            futures.ThreadPoolExecutor(requests + SPARE_THREADS, "grpc"),
            handlers=services.handlers(parts, options.enable_serialization_as_tensor_content,
                                       options.log_requests),
            options=list(channel_arguments(options).items()))
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
            return self._server.add_secure_port(address, grpc.ssl_server_credentials(
                [(config.server_key.encode(), config.server_cert.encode())], config.custom_ca.encode() or None,
                config.client_verify))
        except (RuntimeError, ValueError) as error:
            keys = f", or the keys and certificates in {options.ssl_config_file} do not fit" if config else ""
            raise ServingError(grpc.StatusCode.UNAVAILABLE,
                               f"cannot listen on {address}: it may be taken{keys} ({error})") from None

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def drain(self) -> None:
        """Say to those who watch its health that other servers are to be asked."""
        if self.health:
            self.health.enter_graceful_shutdown()

    def stop(self, grace_seconds: float) -> threading.Event:
        """Refuse new requests; the event is set when those that run have ended, or been cancelled after the grace."""
        return self._server.stop(grace_seconds)


class Rest:
    """The HTTP server of an ASGI application, bound; it answers from `start` to `stop`, in a thread of its own."""

    def __init__(self, options: Options, application):
        """Raises ServingError where it cannot listen."""
        self._socket = _bound(options.host, options.rest_api_port)
        self.port = self._socket.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(
            application, log_config=None, access_log=False, server_header=False, timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, int(options.grace_seconds))))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, name="rest",
                                        daemon=True)

    def start(self) -> None:
        """Begin to answer; connections made from now on wait for that if need be."""
        self._socket.listen(2048)
        self._thread.start()

    def stop(self) -> None:
        """Refuse new requests and wait for those that run, for the grace at most."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


def channel_arguments(options: Options) -> dict[str, int | str]:
    """Return gRPC's settings, those of grpc_channel_arguments last; raises ServingError where these are no KEY=VALUE.

    Values that are whole numbers are given as such, as by tensorflow_model_server.
    """
    arguments = CHANNEL | {"grpc.max_receive_message_length": options.max_request_bytes}
    for pair in filter(None, options.grpc_channel_arguments.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise invalid(f"grpc_channel_arguments: {pair!r} is not KEY=VALUE")
        try:
            arguments[key] = int(value)
        except ValueError:
            arguments[key] = value
    return arguments


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to a port, to any free one for ANY, that does not listen yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends answers at once, not held back for the client's acknowledgement, where the protocol is named alone.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Connections that ended in the last minute shall not keep a server from starting again; a listening one does.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, 0 if port == ANY else port))
    except OSError as error:
        made.close()
        raise ServingError(grpc.StatusCode.UNAVAILABLE,
                           f"cannot listen on port {port} of {host}: {error.strerror}") from None
    return made


def _check_socket_free(path: str) -> None:
    """Raise ServingError where another server answers on a UNIX socket; gRPC itself would take it away."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            if Path(path).exists() and not Path(path).is_socket():
                raise invalid(f"grpc_socket_path: {path} is no socket") from None
            return
    raise ServingError(grpc.StatusCode.UNAVAILABLE, f"cannot listen on {path}: another server does")
