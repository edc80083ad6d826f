"""Read the configuration files that the flags name as messages."""

from pathlib import Path

from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from kseg.system.paths import is_utf8, path_fault, printable
from serving.config import protos
from serving.config.flags import Options
from serving.errors import invalid

PLATFORM = "tensorflow"
THREAD_POOL_NAME = "model_server_batch_threads"


def check_options(options: Options) -> None:
    """Raise ServingError for flags that are incomplete or contradict each other."""
    if not (options.port or options.grpc_socket_path or options.rest_api_port):
        raise invalid(
            "None of server_options.grpc_port, server_options.grpc_socket_path and server_options.http_port is set."
        )
    if not (options.model_base_path or options.model_config_file):
        raise invalid("Both server_options.model_base_path and server_options.model_config_file are empty!")
    if options.batching_parameters_file and not options.enable_batching:
        raise invalid(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )


def read_model_config(options: Options) -> Message:
    """Return the ModelServerConfig of the file or of the single model.

    Raises UserError with the file and line of a mistake, and ServingError for a path that is not UTF-8.
    """
    if options.model_config_file:
        return protos.parse_text_proto(
            Path(options.model_config_file),
            model_server_config_pb2.ModelServerConfig,
            "tensorflow.serving.ModelServerConfig",
        )
    config = model_server_config_pb2.ModelServerConfig()
    base_path = options.model_base_path
    # A relative path is resolved here, as this is a command-line flag. A URI is left as it is and refused later.
    if "://" not in base_path:
        base_path = str(Path(base_path).absolute())
    # Messages hold UTF-8 only.
    if not is_utf8(base_path):
        raise invalid(f"--model_base_path={printable(base_path)} {path_fault(base_path)}")
    config.model_config_list.config.add(name=options.model_name, base_path=base_path, model_platform=PLATFORM)
    return config


def read_batching(options: Options) -> Message | None:
    """Return the BatchingParameters, or None if batching is off; raises UserError."""
    if not options.enable_batching:
        return None
    if options.batching_parameters_file:
        return protos.parse_text_proto(
            Path(options.batching_parameters_file), protos.BatchingParameters, "tensorflow.serving.BatchingParameters"
        )
    parameters = protos.BatchingParameters()
    parameters.thread_pool_name.value = THREAD_POOL_NAME
    return parameters


def read_ssl(options: Options) -> Message | None:
    """Return the SSLConfig, or None if gRPC is not encrypted; raises UserError."""
    if not options.ssl_config_file:
        return None
    return protos.parse_text_proto(Path(options.ssl_config_file), protos.SSLConfig, "tensorflow.serving.SSLConfig")
