"""The flags of the server: those of tensorflow_model_server as --name=value, and additional ones."""

import math
import os
from dataclasses import Field, dataclass, field, fields

from kseg.errors import UserError, unknown

CPUS = len(os.sched_getaffinity(0))
# Marks the help of flags that tensorflow_model_server does not have.
OWN = "(own) "
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# Flags of tensorflow_model_server that this server lacks: the only accepted value, and what another value asks for.
# None: any value is accepted, because the flag has no meaning here.
FIXED = {
    "enable_profiler": (False, "a profiler service"),
    "enable_signature_method_name_check": (False, "a check of the signatures' method names"),
    "flush_filesystem_caches": (None, ""),
    "mixed_precision": ("", "a graph in half precision; export one with python -m kseg.export"),
    "num_tflite_interpreters_per_pool": (None, ""),
    "num_tflite_pools": (None, ""),
    "per_process_gpu_memory_fraction": (0.0, "a limit on its fraction of GPU memory"),
    "platform_config_file": ("", "platforms other than TensorFlow"),
    "prefer_tflite_model": (False, "TensorFlow Lite models"),
    "remove_unused_fields_from_bundle_metagraph": (None, ""),
    "skip_initialize_tpu": (None, ""),
    "tensorflow_session_config_file": ("", "a custom ConfigProto"),
    "thread_pool_factory_config_file": ("", "a custom thread pool"),
    "use_alts_credentials": (False, "ALTS; use ssl_config_file"),
    "xla_cpu_compilation_enabled": (False, "XLA"),
    "xla_gpu_compilation_enabled": (False, "XLA"),
}


class FlagError(UserError):
    """A flag whose value cannot be parsed, is out of range, or asks for an unsupported feature."""


def flag_field(default: bool | int | str, text: str) -> Field:
    """Return the dataclass field of a flag with its default and its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    """The values of the flags."""

    port: int = flag_field(8500, "TCP port of gRPC; 0: none, -1: any free port")
    grpc_socket_path: str = flag_field("", "path of a UNIX socket for gRPC, in addition to the port")
    rest_api_port: int = flag_field(0, "TCP port of REST, the page and the metrics; 0: none, -1: any free port")
    rest_api_num_threads: int = flag_field(4 * CPUS, "threads that answer REST requests")
    rest_api_timeout_in_ms: int = flag_field(30_000, "milliseconds that a REST request may spend in the model")
    rest_api_enable_cors_support: bool = flag_field(False, "let pages of other origins use REST")
    model_name: str = flag_field("default", "name of the single model")
    model_base_path: str = flag_field(
        "", "directory whose subdirectories 1, 2, ... are the versions of the single model"
    )
    model_config_file: str = flag_field(
        "", "text of a ModelServerConfig: several models, policies, labels; the two flags above are then ignored"
    )
    model_config_file_poll_wait_seconds: int = flag_field(0, "interval at which that file is read again; 0: never")
    file_system_poll_wait_seconds: int = flag_field(
        1, "interval at which new versions are looked for; 0: once, negative: never"
    )
    max_num_load_retries: int = flag_field(5, "attempts to load a version after the first")
    load_retry_interval_micros: int = flag_field(60_000_000, "microseconds between attempts")
    num_load_threads: int = flag_field(0, "versions loaded at once after the start; 0: one")
    num_unload_threads: int = flag_field(0, "versions unloaded at once; 0: one")
    allow_version_labels_for_unavailable_models: bool = flag_field(
        False, "a new label may name a version that is not loaded yet"
    )
    saved_model_tags: str = flag_field("serve", "tags of the SavedModel's graph, separated by commas")
    enable_model_warmup: bool = flag_field(
        True, "run VERSION/assets.extra/tf_serving_warmup_requests before serving the version"
    )
    num_request_iterations_for_warmup: int = flag_field(0, "runs of each warm-up request; 0: one")
    enable_batching: bool = flag_field(False, "join waiting requests into batches")
    batching_parameters_file: str = flag_field("", "text of BatchingParameters")
    enable_per_model_batching_parameters: bool = flag_field(False, "read VERSION/batching_params.pbtxt")
    tensorflow_session_parallelism: int = flag_field(0, "threads within and between operations; 0: one per CPU")
    tensorflow_intra_op_parallelism: int = flag_field(0, "threads within an operation; 0: one per CPU")
    tensorflow_inter_op_parallelism: int = flag_field(0, "operations at once; 0: one per CPU")
    ssl_config_file: str = flag_field("", "text of an SSLConfig: gRPC over TLS")
    grpc_channel_arguments: str = flag_field(
        "", "KEY=VALUE,... for the gRPC server, such as grpc.max_connection_age_ms=2000"
    )
    grpc_max_threads: int = flag_field(4 * CPUS, "requests that run at once if max_running_requests is 0")
    enable_grpc_healthcheck_service: bool = flag_field(False, "answer grpc.health.v1")
    enable_serialization_as_tensor_content: bool = flag_field(False, "answer Predict over gRPC in tensor_content")
    monitoring_config_file: str = flag_field("", "text of a MonitoringConfig: metrics for Prometheus on the REST port")
    version: bool = flag_field(False, "print the versions of the server and of TensorFlow")
    help: bool = flag_field(False, "print this list")
    host: str = flag_field("127.0.0.1", OWN + "address to listen on; 0.0.0.0: all addresses of this machine")
    max_running_requests: int = flag_field(
        0, OWN + "requests that run at once; 0: grpc_max_threads, or 256 with batching"
    )
    max_waiting_requests: int = flag_field(256, OWN + "requests that wait to run; more are refused")
    max_waiting_bytes: int = flag_field(1 << 30, OWN + "total bytes of waiting requests; more are refused")
    max_request_bytes: int = flag_field(64 << 20, OWN + "bytes of one request; larger ones are refused")
    drain_seconds: float = flag_field(
        5.0, OWN + "after SIGTERM, keep answering this long with a failing health check, then refuse new requests"
    )
    grace_seconds: float = flag_field(30.0, OWN + "then wait this long for running requests")
    log_format: str = flag_field("text", OWN + "format of log lines: text or json")
    log_requests: bool = flag_field(True, OWN + "log every request, not only events of models and internal failures")
    page: bool = flag_field(True, OWN + "a page at / of the REST port that draws a model's prediction for an image")
    page_samples: str = flag_field("", OWN + "directory of images that the page offers")


def parse_flags(argv: list[str]) -> Options:
    """Return the options of a command line without its program name.

    Like tensorflow_model_server, it prints unknown arguments with the usage and continues. Raises FlagError for a value
    that is not of its flag's type or that this server does not support.
    """
    types = {option.name: option.type for option in fields(Options)}
    values, unknown_arguments = {}, []
    for argument in argv:
        name, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in types and (equals or types[name] is bool):
            values[name] = _parse_value(name, text if equals else "true", types[name])
        elif argument.startswith("--") and name in FIXED:
            _check_fixed(name, text if equals else "true")
        else:
            unknown_arguments.append(argument)
    if unknown_arguments:
        print("\n".join([f"unknown argument: {argument}" for argument in unknown_arguments] + [usage_text()]))
    return check_flags(Options(**values))


def check_flags(options: Options) -> Options:
    """Return the options; raises FlagError if they are out of range or contradict each other."""
    if options.log_format not in ("text", "json"):
        raise FlagError(unknown("value of --log_format", options.log_format, ("text", "json")))
    if options.tensorflow_session_parallelism and (
        options.tensorflow_intra_op_parallelism or options.tensorflow_inter_op_parallelism
    ):
        raise FlagError(
            "--tensorflow_session_parallelism sets both --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism: omit either the former or the latter two"
        )
    for name in ("max_request_bytes", "grpc_max_threads", "rest_api_num_threads", "rest_api_timeout_in_ms"):
        if getattr(options, name) < 1:
            raise FlagError(f"--{name} must be at least 1, got {getattr(options, name)}")
    for name in (
        "max_running_requests",
        "max_waiting_requests",
        "max_waiting_bytes",
        "drain_seconds",
        "grace_seconds",
        "max_num_load_retries",
        "load_retry_interval_micros",
        "num_load_threads",
        "num_unload_threads",
    ):
        # The form of the comparison refuses NaN too.
        if not 0 <= getattr(options, name) < math.inf:
            raise FlagError(f"--{name} must be at least 0 and finite, got {getattr(options, name)}")
    for name in ("port", "rest_api_port"):
        if not -1 <= getattr(options, name) <= 65535:
            raise FlagError(f"--{name} must be from -1 to 65535, got {getattr(options, name)}")
    return options


def usage_text() -> str:
    """Return all flags with their defaults, one per line."""
    lines = [
        "usage: python -m serving.server --model_base_path=DIR [--name=value ...]",
        "",
        "Flags; tensorflow_model_server does not have those marked (own):",
    ]
    for option in fields(Options):
        default = str(option.default).lower() if option.type is bool else option.default
        lines.append(f"  --{option.name}={default}\t{option.metadata['help']}".expandtabs(56))
    lines += [
        "",
        "Flags of tensorflow_model_server that are accepted only with their default there:",
        "  " + ", ".join(name for name, (value, _) in FIXED.items() if value is not None),
        "Flags of tensorflow_model_server that are accepted and ignored:",
        "  " + ", ".join(name for name, (value, _) in FIXED.items() if value is None),
    ]
    return "\n".join(lines)


def _parse_value(name: str, text: str, kind: type) -> bool | int | float | str:
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise FlagError(f"--{name} must be true or false, got {text}")
        return BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise FlagError(f"--{name} must be {'an integer' if kind is int else 'a number'}, got {text}") from None


def _check_fixed(name: str, text: str) -> None:
    allowed, feature = FIXED[name]
    if allowed is not None and _parse_value(name, text, type(allowed)) != allowed:
        raise FlagError(f"--{name}={text}: this server does not support {feature}")
