"""Servers in the test's process, and stubs that call them."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.config.flags import Options
from serving.model_server import Server

# Polls often, loads without retries, and has a short grace period.
QUICK = Options(
    port=-1, file_system_poll_wait_seconds=1, max_num_load_retries=0, load_retry_interval_micros=0, grace_seconds=5
)


@contextlib.contextmanager
def running(served: Path | Options, name: str = "model") -> Iterator[Server]:
    """Run a server with the given options, or with QUICK for a base path and a model name, and stop it at the end."""
    options = served if isinstance(served, Options) else replace(QUICK, model_name=name, model_base_path=str(served))
    server = Server(options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Stubs(NamedTuple):
    """The official stubs on one channel."""

    predictions: prediction_service_pb2_grpc.PredictionServiceStub
    models: model_service_pb2_grpc.ModelServiceStub
    channel: grpc.Channel


@contextlib.contextmanager
def connected(server: Server) -> Iterator[Stubs]:
    """Open a channel to a server's gRPC port for messages of any size."""
    with grpc.insecure_channel(
        f"127.0.0.1:{server.grpc_port}",
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    ) as channel:
        yield Stubs(
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
            channel,
        )
