"""A server that speaks TensorFlow Serving's protocol: python -m serving.server --model_base_path=DIR.

It answers unchanged clients of tensorflow_model_server over gRPC and REST, and takes the same flags and configuration
files. TensorFlow is imported when a server is created, so that --help answers at once.
"""

import logging
import os
import signal
import sys
import threading

from kseg.errors import UserError
from kseg.system import quiet_start
from serving import model_server
from serving.config import flags
from serving.telemetry import logs

# Exit status of tensorflow_model_server's `return -1`.
FAILED = 255


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status."""
    try:
        options = flags.parse_flags(argv)
    except UserError as error:
        print(f"{flags.usage_text()}\n\n{error}")
        return FAILED
    if options.help:
        print(flags.usage_text())
        return 0
    if options.version:
        return _print_versions()
    logs.start_log(options.log_format)
    stop_requested = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # No request runs during the start, so the process exits at once.
        signal.signal(number, lambda *_: os._exit(0))
    from serving.errors import ServingError

    try:
        server = model_server.Server(options)
        server.start()
    except UserError as error:
        print(error, file=sys.stderr)
        return _failed(f"INVALID_ARGUMENT: {error}")
    except ServingError as error:
        return _failed(f"{error.code.name}: {error.message}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop_requested.set())
    if options.log_format == "text":
        print(server.describe(), flush=True)
    stop_requested.wait()
    # A second signal ends the process without draining.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    server.stop(options.drain_seconds)
    return 0


def _failed(message: str) -> int:
    print(f"Failed to start server. Error: {message}")
    return FAILED


def _print_versions() -> int:
    quiet_start.import_tensorflow()
    import tensorflow as tf

    import kseg

    print(f"kseg serving: {kseg.__version__}\nTensorFlow Library: {tf.__version__}")
    return 0


def run() -> None:
    """Serve as the arguments of the process say, and end the process with the exit status."""
    status = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # A regular exit would wait for the threads of requests that outlived the grace period.
    os._exit(status)


if __name__ == "__main__":
    run()
