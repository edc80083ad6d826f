"""Configuration messages of tensorflow_model_server that its Python package lacks, and the parser of their text form.

The fields are those of tensorflow_serving/servables/tensorflow/session_bundle_config.proto,
config/monitoring_config.proto and config/ssl_config.proto.
"""

from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.message import Message

from kseg.errors import UserError

PACKAGE = "tensorflow.serving"
_BOOL, _INT64, _STRING = (
    getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{kind}") for kind in ("BOOL", "INT64", "STRING")
)
# {message: {field: scalar type or message name}}, with fields numbered from 1.
MESSAGES = {
    "BatchingParameters": {
        "max_batch_size": "google.protobuf.Int64Value",
        "batch_timeout_micros": "google.protobuf.Int64Value",
        "max_enqueued_batches": "google.protobuf.Int64Value",
        "num_batch_threads": "google.protobuf.Int64Value",
        "thread_pool_name": "google.protobuf.StringValue",
        "allowed_batch_sizes": _INT64,
        "pad_variable_length_inputs": _BOOL,
        "enable_large_batch_splitting": "google.protobuf.BoolValue",
        "max_execution_batch_size": "google.protobuf.Int64Value",
    },
    "PrometheusConfig": {"enable": _BOOL, "path": _STRING},
    "MonitoringConfig": {"prometheus_config": f"{PACKAGE}.PrometheusConfig"},
    "SSLConfig": {"server_key": _STRING, "server_cert": _STRING, "custom_ca": _STRING, "client_verify": _BOOL},
}
REPEATED = {"allowed_batch_sizes"}


def _make_classes() -> dict[str, type[Message]]:
    """Return the classes of MESSAGES by name."""
    file = descriptor_pb2.FileDescriptorProto(name="serving/protos", package=PACKAGE, syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            added = message.field.add(name=field, number=number)
            added.label = added.LABEL_REPEATED if field in REPEATED else added.LABEL_OPTIONAL
            if isinstance(kind, str):
                added.type, added.type_name = added.TYPE_MESSAGE, f".{kind}"
            else:
                added.type = kind
    # A separate pool avoids conflicts if TensorFlow Serving's package ever defines the same names.
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


_CLASSES = _make_classes()
BatchingParameters, MonitoringConfig, SSLConfig = (
    _CLASSES[name] for name in ("BatchingParameters", "MonitoringConfig", "SSLConfig")
)


def parse_text_proto(path: Path, message_class: type[Message], full_name: str) -> Message:
    """Parse a file of protocol buffer text.

    Raises UserError with file, line and column. Its text is that of tensorflow_model_server, where the message is named
    `full_name`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: Error parsing text-format {full_name}: not UTF-8 at byte {error.start}") from None
    try:
        return text_format.Parse(text, message_class())
    except text_format.ParseError as error:
        raise UserError(f"{path}: Error parsing text-format {full_name}: {error}") from None
