"""The configuration files that the flags name, as messages."""

from pathlib import Path

from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from serving.config import protos
from serving.config.flags import Options
from serving.errors import invalid

PLATFORM = "tensorflow"
THREADS_NAME = "model_server_batch_threads"


def check(options: Options) -> None:
    """Raise ServingError for flags that say too little, or contradict each other."""
    if not (options.port or options.grpc_socket_path or options.rest_api_port):
        raise invalid("None of server_options.grpc_port, server_options.grpc_socket_path and server_options.http_port "
                      "is set.")
    if not (options.model_base_path or options.model_config_file):
        raise invalid("Both server_options.model_base_path and server_options.model_config_file are empty!")
    if options.batching_parameters_file and not options.enable_batching:
        raise invalid("server_options.batching_parameters_file is set without setting server_options.enable_batching "
                      "to true.")


def models(options: Options) -> Message:
    """Return the ModelServerConfig of a file, or of the one model; raises UserError naming file and line."""
    if options.model_config_file:
        return protos.read(Path(options.model_config_file), model_server_config_pb2.ModelServerConfig,
                           "tensorflow.serving.ModelServerConfig")
    config = model_server_config_pb2.ModelServerConfig()
    base_path = options.model_base_path
    # Relative to where the command is given; a file's paths have no such place, and a URI is refused as one.
    if "://" not in base_path:
        base_path = str(Path(base_path).absolute())
    config.model_config_list.config.add(name=options.model_name, base_path=base_path, model_platform=PLATFORM)
    return config


def batching(options: Options) -> Message | None:
    """Return the BatchingParameters, None where requests are not put together; raises UserError."""
    if not options.enable_batching:
        return None
    if options.batching_parameters_file:
        return protos.read(Path(options.batching_parameters_file), protos.BatchingParameters,
                           "tensorflow.serving.BatchingParameters")
    parameters = protos.BatchingParameters()
    parameters.thread_pool_name.value = THREADS_NAME
    return parameters


def ssl(options: Options) -> Message | None:
    """Return the SSLConfig, None where gRPC is in clear text; raises UserError."""
    if not options.ssl_config_file:
        return None
    return protos.read(Path(options.ssl_config_file), protos.SSLConfig, "tensorflow.serving.SSLConfig")
