"""The message classes created at run time: their fields and wire format, and errors that name a line."""

import pytest
from google.protobuf import wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from kseg.errors import UserError
from serving.config.protos import BatchingParameters, MonitoringConfig, SSLConfig, parse_text_proto

BATCHING = """
# The example of TensorFlow Serving's guide.
max_batch_size { value: 128 }
batch_timeout_micros { value: 0 }
num_batch_threads { value: 8 }
thread_pool_name { value: "batches" }
allowed_batch_sizes: 32
allowed_batch_sizes: 128
pad_variable_length_inputs: true
"""


def write(directory, content):
    path = directory / "a config"
    path.write_text(content, encoding="utf-8")
    return path


def test_batching_parameters_distinguish_set_from_unset_fields(tmp_path):
    found = parse_text_proto(write(tmp_path, BATCHING), BatchingParameters, "tensorflow.serving.BatchingParameters")
    assert found.max_batch_size.value == 128 and found.HasField("batch_timeout_micros")
    assert found.batch_timeout_micros.value == 0 and not found.HasField("max_enqueued_batches")
    assert list(found.allowed_batch_sizes) == [32, 128] and found.pad_variable_length_inputs
    assert found.thread_pool_name.value == "batches" and not found.HasField("enable_large_batch_splitting")


def test_field_numbers_match_tensorflow_servings_wire_format():
    # A field consists of its key (number << 3 | 2), its length and the bytes of the wrapper.
    value = wrappers_pb2.Int64Value(value=7).SerializeToString()
    for number, field in (
        (1, "max_batch_size"),
        (2, "batch_timeout_micros"),
        (3, "max_enqueued_batches"),
        (4, "num_batch_threads"),
    ):
        found = BatchingParameters.FromString(bytes([number << 3 | 2, len(value)]) + value)
        assert getattr(found, field).value == 7
    ssl = SSLConfig(server_key="k", server_cert="c", custom_ca="a", client_verify=True)
    assert ssl.SerializeToString() == b"\x0a\x01k\x12\x01c\x1a\x01a\x20\x01"
    assert MonitoringConfig.FromString(b"\x0a\x06\x08\x01\x12\x02/m").prometheus_config.path == "/m"


def test_an_official_message_can_be_parsed_too(tmp_path):
    path = write(tmp_path, 'model_config_list { config { name: "a" base_path: "/b" model_platform: "tensorflow" } }')
    found = parse_text_proto(path, model_server_config_pb2.ModelServerConfig, "tensorflow.serving.ModelServerConfig")
    assert found.model_config_list.config[0].base_path == "/b"


@pytest.mark.parametrize(
    "content, position",
    [
        ("max_batch_size { value: 1 }\nmax_size { value: 2 }\n", "2:1"),
        ("\n\nmax_batch_size { value: 'many' }", "3:25"),
        ("max_batch_size { value: 1", "1:25"),
    ],
)
def test_errors_name_file_and_line(tmp_path, content, position):
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        parse_text_proto(path, BatchingParameters, "tensorflow.serving.BatchingParameters")
    assert str(caught.value).startswith(
        f"{path}: Error parsing text-format tensorflow.serving.BatchingParameters: {position} : "
    )


def test_errors_name_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read .*missing: No such file"):
        parse_text_proto(tmp_path / "missing", SSLConfig, "tensorflow.serving.SSLConfig")
    path = tmp_path / "bytes"
    path.write_bytes(b'server_key: "\xff"')
    with pytest.raises(UserError, match="not UTF-8 at byte 13"):
        parse_text_proto(path, SSLConfig, "tensorflow.serving.SSLConfig")
