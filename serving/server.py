"""A server that speaks TensorFlow Serving's protocol: python -m serving.server --model_base_path=DIR.

It answers unchanged clients of tensorflow_model_server over gRPC and REST, under the same flags and configuration
files. TensorFlow is imported when a server is made, so that --help answers at once.
"""

import logging
import os
import signal
import sys
import threading

from kseg.errors import UserError
from serving import model_server
from serving.config import flags
from serving.telemetry import logs
# As of a process that returned -1.
FAILED = 255


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status."""
    try:
        options = flags.parse(argv)
    except UserError as error:
        print(f"{flags.usage()}\n\n{error}")
        return FAILED
    if options.help:
        print(flags.usage())
        return 0
    # It would tell of every request that fails, which the log does in its own form; errors remain.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if options.version:
        return _print_versions()
    logs.start(options.log_format)
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Nobody is answered yet.
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
        signal.signal(number, lambda *_: asked.set())
    if options.log_format == "text":
        print(server.describe(), flush=True)
    asked.wait()
    # Whoever asks twice is in a hurry.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    server.stop(options.drain_seconds)
    return 0


def _failed(message: str) -> int:
    print(f"Failed to start server. Error: {message}")
    return FAILED


def _print_versions() -> int:
    import tensorflow as tf

    import kseg

    print(f"kseg serving: {kseg.__version__}\nTensorFlow Library: {tf.__version__}")
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of requests that outlived the grace would be waited for.
    os._exit(status)
