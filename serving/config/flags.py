"""The server's flags: those of tensorflow_model_server, --name=value, and some of its own."""

import math
import os
from dataclasses import Field, dataclass, field, fields

from kseg.errors import UserError, unknown

CPUS = len(os.sched_getaffinity(0))
OWN = "(own) "
WORDS = {"true": True, "1": True, "false": False, "0": False}
# What they may be set to, and what anything else would have meant to tensorflow_model_server.
FIXED = {
    "enable_profiler": (False, "a profiler's service"),
    "enable_signature_method_name_check": (False, "a check of signatures' method names"),
    "flush_filesystem_caches": (None, ""),
    "mixed_precision": ("", "a graph in half precision; export it so: python -m kseg.export"),
    "num_tflite_interpreters_per_pool": (None, ""),
    "num_tflite_pools": (None, ""),
    "per_process_gpu_memory_fraction": (0.0, "a part of a GPU's memory"),
    "platform_config_file": ("", "other platforms than TensorFlow"),
    "prefer_tflite_model": (False, "TensorFlow Lite models"),
    "remove_unused_fields_from_bundle_metagraph": (None, ""),
    "skip_initialize_tpu": (None, ""),
    "tensorflow_session_config_file": ("", "a ConfigProto of its own"),
    "thread_pool_factory_config_file": ("", "a thread pool of its own"),
    "use_alts_credentials": (False, "ALTS; use ssl_config_file"),
    "xla_cpu_compilation_enabled": (False, "XLA"),
    "xla_gpu_compilation_enabled": (False, "XLA"),
}


class FlagError(UserError):
    """A flag's value cannot be read, or the server cannot do what it means."""


def flag(default: bool | int | str, text: str) -> Field:
    """Return a dataclass field of a flag: its default and what it means."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    """The flags' values."""

    port: int = flag(8500, "TCP port of gRPC; 0: none, -1: any that is free")
    grpc_socket_path: str = flag("", "path of a UNIX socket for gRPC, beside the port")
    rest_api_port: int = flag(0, "TCP port of REST, the page and the metrics; 0: none, -1: any that is free")
    rest_api_num_threads: int = flag(4 * CPUS, "threads that answer REST requests")
    rest_api_timeout_in_ms: int = flag(30_000, "milliseconds a REST request may take in the model")
    rest_api_enable_cors_support: bool = flag(False, "let pages of other origins use REST")
    model_name: str = flag("default", "name of the one model")
    model_base_path: str = flag("", "directory whose subdirectories 1, 2, ... are the one model's versions")
    model_config_file: str = flag("", "text of a ModelServerConfig: several models, policies, labels; the two flags "
                                      "above are ignored then")
    model_config_file_poll_wait_seconds: int = flag(0, "read that file again so often; 0: never")
    file_system_poll_wait_seconds: int = flag(1, "look for new versions so often; 0: once, negative: never")
    max_num_load_retries: int = flag(5, "attempts to load a version after the first")
    load_retry_interval_micros: int = flag(60_000_000, "microseconds between them")
    num_load_threads: int = flag(0, "versions loaded at once after the start; 0: one")
    num_unload_threads: int = flag(0, "versions unloaded at once; 0: one")
    allow_version_labels_for_unavailable_models: bool = flag(False, "a new label may name a version not loaded yet")
    saved_model_tags: str = flag("serve", "tags of the SavedModel's graph, by commas")
    enable_model_warmup: bool = flag(True, "run VERSION/assets.extra/tf_serving_warmup_requests before serving it")
    num_request_iterations_for_warmup: int = flag(0, "run each of them so often; 0: once")
    enable_batching: bool = flag(False, "join waiting requests to batches")
    batching_parameters_file: str = flag("", "text of BatchingParameters")
    enable_per_model_batching_parameters: bool = flag(False, "read VERSION/batching_params.pbtxt")
    tensorflow_session_parallelism: int = flag(0, "threads within and between operations; 0: one a CPU")
    tensorflow_intra_op_parallelism: int = flag(0, "threads within an operation; 0: one a CPU")
    tensorflow_inter_op_parallelism: int = flag(0, "operations at once; 0: one a CPU")
    ssl_config_file: str = flag("", "text of an SSLConfig: gRPC by TLS")
    grpc_channel_arguments: str = flag("", "KEY=VALUE,... for the gRPC server, grpc.max_connection_age_ms=2000 say")
    grpc_max_threads: int = flag(4 * CPUS, "requests that run at once, where max_running_requests is 0")
    enable_grpc_healthcheck_service: bool = flag(False, "answer grpc.health.v1")
    enable_serialization_as_tensor_content: bool = flag(False, "answer Predict over gRPC in tensor_content")
    monitoring_config_file: str = flag("", "text of a MonitoringConfig: metrics for Prometheus on the REST port")
    version: bool = flag(False, "print the versions of the server and of TensorFlow")
    help: bool = flag(False, "print this")
    host: str = flag("127.0.0.1", OWN + "address to listen on; 0.0.0.0: all of this machine")
    max_running_requests: int = flag(0, OWN + "requests that run at once; 0: grpc_max_threads, and 256 with batching")
    max_waiting_requests: int = flag(256, OWN + "requests that wait for that; more are refused")
    max_waiting_bytes: int = flag(1 << 30, OWN + "bytes that waiting requests hold together; more are refused")
    max_request_bytes: int = flag(64 << 20, OWN + "bytes of one request; larger ones are refused")
    drain_seconds: float = flag(5.0, OWN + "after SIGTERM answer so long still, unhealthy, then refuse what is new")
    grace_seconds: float = flag(30.0, OWN + "then wait so long for what runs")
    log_format: str = flag("text", OWN + "lines of the log: text or json")
    log_requests: bool = flag(True, OWN + "log every request, and not only events of the models and failures within")
    page: bool = flag(True, OWN + "a page at / of the REST port that draws what a model sees in a picture")
    page_samples: str = flag("", OWN + "directory of pictures offered there")


def parse(argv: list[str]) -> Options:
    """Return the options of a command line without its program; an unknown argument is printed, with the usage.

    Raises FlagError for a value that is not of its flag's type, or that this server cannot fulfil.
    """
    types = {each.name: each.type for each in fields(Options)}
    values, unknown_arguments = {}, []
    for argument in argv:
        name, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in types and (equals or types[name] is bool):
            values[name] = _value(name, text if equals else "true", types[name])
        elif argument.startswith("--") and name in FIXED:
            _check_fixed(name, text if equals else "true")
        else:
            unknown_arguments.append(argument)
    if unknown_arguments:
        print("\n".join([f"unknown argument: {argument}" for argument in unknown_arguments] + [usage()]))
    return check(Options(**values))


def check(options: Options) -> Options:
    """Return the options; raises FlagError where they contradict each other or are out of range."""
    if options.log_format not in ("text", "json"):
        raise FlagError(unknown("value of --log_format", options.log_format, ("text", "json")))
    if options.tensorflow_session_parallelism and (options.tensorflow_intra_op_parallelism
                                                   or options.tensorflow_inter_op_parallelism):
        raise FlagError("--tensorflow_session_parallelism sets both --tensorflow_intra_op_parallelism and "
                        "--tensorflow_inter_op_parallelism: give it alone, or them")
    for name in ("max_request_bytes", "grpc_max_threads", "rest_api_num_threads", "rest_api_timeout_in_ms"):
        if getattr(options, name) < 1:
            raise FlagError(f"--{name}={getattr(options, name)}: at least 1")
    for name in ("max_running_requests", "max_waiting_requests", "max_waiting_bytes", "drain_seconds", "grace_seconds",
                 "max_num_load_retries", "load_retry_interval_micros", "num_load_threads", "num_unload_threads"):
        # Not NaN either.
        if not 0 <= getattr(options, name) < math.inf:
            raise FlagError(f"--{name}={getattr(options, name)}: at least 0, and finite")
    for name in ("port", "rest_api_port"):
        if not -1 <= getattr(options, name) <= 65535:
            raise FlagError(f"--{name}={getattr(options, name)}: from -1 to 65535")
    return options


def usage() -> str:
    """Return all flags with their defaults, one a line."""
    lines = ["usage: python -m serving.server --model_base_path=DIR [--name=value ...]", "",
             "Flags; tensorflow_model_server does not have those marked (own):"]
    for each in fields(Options):
        default = str(each.default).lower() if each.type is bool else each.default
        lines.append(f"  --{each.name}={default}\t{each.metadata['help']}".expandtabs(56))
    lines += ["", "Accepted as tensorflow_model_server's, but only with the value they have there without being given:",
              "  " + ", ".join(name for name, (value, _) in FIXED.items() if value is not None),
              "Accepted without meaning here:",
              "  " + ", ".join(name for name, (value, _) in FIXED.items() if value is None)]
    return "\n".join(lines)


def _value(name: str, text: str, kind: type) -> bool | int | float | str:
    if kind is bool:
        if text.lower() not in WORDS:
            raise FlagError(f"--{name}={text}: true or false")
        return WORDS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise FlagError(f"--{name}={text}: not {'a whole number' if kind is int else 'a number'}") from None


def _check_fixed(name: str, text: str) -> None:
    allowed, meaning = FIXED[name]
    if allowed is not None and _value(name, text, type(allowed)) != allowed:
        raise FlagError(f"--{name}={text}: this server does not do {meaning}")
