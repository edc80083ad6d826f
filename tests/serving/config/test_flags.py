"""The command line: names and defaults of tensorflow_model_server, refused values, and messages of a failed start."""

from dataclasses import fields, replace

import pytest

from serving import server
from serving.config import files, flags
from serving.config.flags import FlagError, Options
from serving.errors import ServingError
from serving.listeners import channel_arguments

# The flags of `tensorflow_model_server --help` (main.cc, server.h) that this server supports, with their defaults.
REAL = {
    "port": 8500,
    "grpc_socket_path": "",
    "rest_api_port": 0,
    "rest_api_timeout_in_ms": 30000,
    "rest_api_enable_cors_support": False,
    "enable_batching": False,
    "allow_version_labels_for_unavailable_models": False,
    "batching_parameters_file": "",
    "enable_per_model_batching_parameters": False,
    "model_config_file": "",
    "model_config_file_poll_wait_seconds": 0,
    "model_name": "default",
    "model_base_path": "",
    "num_load_threads": 0,
    "num_unload_threads": 0,
    "max_num_load_retries": 5,
    "load_retry_interval_micros": 60_000_000,
    "file_system_poll_wait_seconds": 1,
    "tensorflow_session_parallelism": 0,
    "tensorflow_intra_op_parallelism": 0,
    "tensorflow_inter_op_parallelism": 0,
    "ssl_config_file": "",
    "saved_model_tags": "serve",
    "grpc_channel_arguments": "",
    "enable_model_warmup": True,
    "num_request_iterations_for_warmup": 0,
    "version": False,
    "monitoring_config_file": "",
    "enable_grpc_healthcheck_service": False,
    "enable_serialization_as_tensor_content": False,
}
# Its other flags are either ignored here, or refused with another value than their default.
UNSUPPORTED = (
    "flush_filesystem_caches",
    "tensorflow_session_config_file",
    "use_alts_credentials",
    "platform_config_file",
    "per_process_gpu_memory_fraction",
    "remove_unused_fields_from_bundle_metagraph",
    "prefer_tflite_model",
    "num_tflite_pools",
    "num_tflite_interpreters_per_pool",
    "enable_signature_method_name_check",
    "xla_cpu_compilation_enabled",
    "xla_gpu_compilation_enabled",
    "enable_profiler",
    "thread_pool_factory_config_file",
    "mixed_precision",
    "skip_initialize_tpu",
)


def test_names_and_defaults_match_tensorflow_model_server():
    parsed = flags.parse_flags([])
    assert {name: getattr(parsed, name) for name in REAL} == REAL
    assert set(UNSUPPORTED) == set(flags.FIXED)
    # The real server listens on all addresses, because it usually runs in a container.
    assert parsed.host == "127.0.0.1"


def test_values_of_all_types_are_parsed():
    parsed = flags.parse_flags(
        [
            "--port=9000",
            "--model_name=a=b",
            "--enable_batching",
            "--enable_model_warmup=false",
            "--rest_api_enable_cors_support=1",
            "--drain_seconds=0.5",
            "--port=9001",
            "--model_base_path=",
        ]
    )
    assert parsed == Options(
        port=9001,
        model_name="a=b",
        enable_batching=True,
        enable_model_warmup=False,
        rest_api_enable_cors_support=True,
        drain_seconds=0.5,
    )


@pytest.mark.parametrize(
    "argument",
    [
        "--port=http",
        "--port=70000",
        "--enable_batching=yes",
        "--drain_seconds=-1",
        "--log_format=xml",
        "--grace_seconds=x",
        "--max_request_bytes=0",
        "--grace_seconds=inf",
        "--drain_seconds=nan",
        "--num_load_threads=-1",
    ],
)
def test_wrong_values_are_refused_with_the_flag_and_the_value(argument):
    name, _, value = argument.partition("=")
    with pytest.raises(FlagError, match=name) as caught:
        flags.parse_flags([argument])
    assert value in str(caught.value)


def test_contradictory_thread_settings_are_refused():
    with pytest.raises(FlagError, match="--tensorflow_session_parallelism"):
        flags.parse_flags(["--tensorflow_session_parallelism=2", "--tensorflow_intra_op_parallelism=1"])
    flags.parse_flags(["--tensorflow_intra_op_parallelism=1", "--tensorflow_inter_op_parallelism=2"])


def test_unsupported_flags_are_accepted_only_at_their_default(capsys):
    accepted = [
        "--enable_profiler=false",
        "--flush_filesystem_caches=false",
        "--platform_config_file=",
        "--xla_cpu_compilation_enabled=false",
        "--per_process_gpu_memory_fraction=0.0",
    ]
    assert flags.parse_flags(accepted) == Options()
    assert not capsys.readouterr().out
    for argument in (
        "--enable_profiler",
        "--platform_config_file=x",
        "--prefer_tflite_model=true",
        "--per_process_gpu_memory_fraction=0.5",
        "--use_alts_credentials=true",
    ):
        with pytest.raises(FlagError, match=argument):
            flags.parse_flags([argument])


@pytest.mark.parametrize("argument", ["--modle_name=x", "-port=1", "port=1", "--port", "--model_name"])
def test_an_unknown_argument_is_printed_and_the_start_continues(argument, capsys):
    assert flags.parse_flags([argument, "--port=1234"]).port == 1234
    printed = capsys.readouterr().out
    assert f"unknown argument: {argument}\n" in printed and "--model_base_path=" in printed


def test_help_lists_all_flags_with_their_defaults(capsys):
    assert server.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for field in fields(Options):
        default = str(field.default).lower() if field.type is bool else field.default
        assert f"  --{field.name}={default} " in printed
        assert field.metadata["help"] in printed


def test_version_prints_the_version_of_tensorflow(capsys):
    assert server.main(["--version"]) == 0
    assert "TensorFlow Library: 2." in capsys.readouterr().out


def test_channel_arguments_are_integers_where_possible():
    arguments = channel_arguments(
        replace(
            Options(), max_request_bytes=5, grpc_channel_arguments="grpc.max_connection_age_ms=2000,grpc.x=y,own.key=-1"
        )
    )
    assert (arguments["grpc.max_connection_age_ms"], arguments["grpc.x"], arguments["own.key"]) == (2000, "y", -1)
    assert arguments["grpc.max_receive_message_length"] == 5 and arguments["grpc.so_reuseport"] == 0
    # A given argument overrides the default.
    assert channel_arguments(replace(Options(), grpc_channel_arguments="grpc.so_reuseport=1"))["grpc.so_reuseport"] == 1
    with pytest.raises(ServingError, match="'grpc.x' is not KEY=VALUE"):
        channel_arguments(replace(Options(), grpc_channel_arguments="grpc.x"))


def test_a_relative_base_path_is_resolved_and_a_uri_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (config,) = files.read_model_config(Options(model_name="m", model_base_path="a/b")).model_config_list.config
    assert (config.name, config.base_path, config.model_platform) == ("m", str(tmp_path / "a" / "b"), "tensorflow")
    (config,) = files.read_model_config(Options(model_base_path="gs://a/b")).model_config_list.config
    assert config.base_path == "gs://a/b"


def failed(arguments, capsys):
    """Return stdout and stderr of a server that fails to start."""
    assert server.main(["--port=-1", *map(str, arguments)]) == 255
    printed = capsys.readouterr()
    return printed.out, printed.err


@pytest.fixture
def restored_handlers():
    """Restore the log and signal handlers of the process, which a server replaces."""
    import logging
    import signal

    root = logging.getLogger()
    signal_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    log_handlers, level = list(root.handlers), root.level
    yield
    for number, handler in signal_handlers.items():
        signal.signal(number, handler)
    root.handlers[:], root.level = log_handlers, level
    logging.getLogger("serving").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("restored_handlers")
def test_a_failed_start_prints_its_reason(tmp_path, capsys):
    begin = "Failed to start server. Error: "
    out, _ = failed([], capsys)
    assert out == (
        f"{begin}INVALID_ARGUMENT: Both server_options.model_base_path and "
        "server_options.model_config_file are empty!\n"
    )
    out, _ = failed(["--model_base_path=/x", "--batching_parameters_file=/x"], capsys)
    assert out.startswith(begin) and "without setting server_options.enable_batching to true" in out
    out, _ = failed(["--model_base_path=/x", "--drain_seconds=soon"], capsys)
    assert "--drain_seconds must be" in out and "soon" in out and "--model_base_path=" in out
    config = tmp_path / "models.config"
    config.write_text("model_config_list {\n  config { nom: 'x' }\n}")
    out, err = failed([f"--model_config_file={config}"], capsys)
    assert out.startswith(begin)
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in err and "2:" in err
    config.write_text('model_config_list { config { name: "m" base_path: "relative" model_platform: "tensorflow" } }')
    out, _ = failed([f"--model_config_file={config}"], capsys)
    assert out == (
        f"{begin}INVALID_ARGUMENT: Expected model m to have an absolute path or URI; got base_path()=relative\n"
    )
    out, err = failed([f"--model_config_file={tmp_path / 'none.config'}"], capsys)
    assert out.startswith(begin) and "none.config" in err


@pytest.mark.usefixtures("restored_handlers")
def test_the_start_fails_if_an_initial_model_cannot_be_loaded(tmp_path, capsys):
    from tests.helpers import small_servables

    small_servables.corrupt(tmp_path / "bad", 1)
    out, _ = failed([f"--model_base_path={tmp_path / 'bad'}", "--max_num_load_retries=0"], capsys)
    assert out.startswith("Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: ")
