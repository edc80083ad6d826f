"""Try a model in a container of TensorFlow Serving, with the components Requests and InfraValidator.

TFX's executor sends serialized tf.Examples, which the signature `serve_tf_examples` takes. Requests writes such
examples, because the records of Ingest store their images under another feature name.
"""

import json
import logging
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import tensorflow as tf
from tfx import types
from tfx.components.infra_validator import executor
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.proto import infra_validator_pb2
from tfx.types import artifact_utils, standard_artifacts, standard_component_specs
from tfx.types.component_spec import ChannelParameter, ExecutionParameter

from kseg.datasets import prepared
from kseg.errors import ConfigError
from kseg.exporting.signatures import IMAGE_FEATURE
from pipeline import artifacts
from pipeline.metadata import code_digest

SIGNATURE = "serve_tf_examples"
# Number of examples in the requests, and of attempts before a model is refused.
EXAMPLES, TRIES = 3, 2
# Number of characters of a reason.
MAX_REASON_LENGTH = 500

Platform = infra_validator_pb2.LocalDockerConfig | infra_validator_pb2.KubernetesConfig


def serving_spec(image: str, platform: Platform) -> infra_validator_pb2.ServingSpec:
    """Return the specification of a server in a container on a platform.

    `image` has a tag or a digest, such as tensorflow/serving:2.19.1 or NAME@sha256:DIGEST. Raises ConfigError for other
    texts.
    """
    name, at, digest = image.partition("@")
    tag = ""
    if not at:
        # A colon before a slash belongs to a registry's port.
        name, _, tag = image.rpartition(":")
    if not (name and (tag or digest)) or "/" in tag:
        raise ConfigError(f"--infra-validator takes IMAGE:TAG, such as tensorflow/serving:2.19.1, got {image}")
    binary = infra_validator_pb2.TensorFlowServing(
        image_name=name, tags=[tag] if tag else [], digests=[digest] if digest else []
    )
    result = infra_validator_pb2.ServingSpec(tensorflow_serving=binary)
    field = {
        infra_validator_pb2.LocalDockerConfig: result.local_docker,
        infra_validator_pb2.KubernetesConfig: result.kubernetes,
    }[type(platform)]
    field.CopyFrom(platform)
    # This selects the platform even if its message is empty.
    field.SetInParent()
    return result


@contextmanager
def collected_errors() -> Iterator[list[BaseException]]:
    """Collect the errors that TFX's executor logs, instead of printing them with the images in their text."""
    errors: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info:
            errors.append(record.exc_info[1])
        return not record.exc_info

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield errors
    finally:
        logger.removeFilter(keep)


def root_cause(error: BaseException) -> str:
    """Return the message of the first error in a chain; the others may quote a whole request."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, grpc.RpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)[:MAX_REASON_LENGTH]


class Executor(executor.Executor):
    """Run TFX's executor, and record the reason of its blessing."""

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        with collected_errors() as errors:
            super().Do(input_dict, output_dict, exec_properties)
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        message = f"TensorFlow Serving answered {SIGNATURE}"
        if blessing.get_int_custom_property("blessed") != 1:
            reason = root_cause(errors[-1]) if errors else "no reason was logged"
            message = f"TensorFlow Serving did not answer: {reason}"
        print(message)
        blessing.set_string_custom_property("blessing_message", message)


class InfraValidatorSpec(types.ComponentSpec):
    PARAMETERS = standard_component_specs.InfraValidatorSpec.PARAMETERS | {"program": ExecutionParameter(type=str)}
    INPUTS = standard_component_specs.InfraValidatorSpec.INPUTS
    OUTPUTS = standard_component_specs.InfraValidatorSpec.OUTPUTS


class InfraValidator(base_component.BaseComponent):
    """TFX component that outputs the `blessing` of a model, which it serves in a container and sends `requests`.

    It runs the executor of TFX's component of the same name, which KubeflowV2DagRunner does not accept.
    """

    SPEC_CLASS = InfraValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, model: types.BaseChannel, requests: types.BaseChannel, spec: infra_validator_pb2.ServingSpec):
        super().__init__(
            InfraValidatorSpec(
                model=model,
                examples=requests,
                serving_spec=spec,
                program=code_digest.code_digest(__name__),
                validation_spec=infra_validator_pb2.ValidationSpec(max_loading_time_seconds=300, num_tries=TRIES),
                request_spec=infra_validator_pb2.RequestSpec(
                    tensorflow_serving=infra_validator_pb2.TensorFlowServingRequestSpec(signature_names=[SIGNATURE]),
                    num_examples=EXAMPLES,
                ),
                blessing=types.Channel(type=standard_artifacts.InfraBlessing),
            )
        )


class RequestsExecutor(base_executor.BaseExecutor):
    """Write the first images of a split as tf.Examples for the signature."""

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        requests = artifact_utils.get_single_instance(output_dict["requests"])
        split, name = exec_properties["split"], json.loads(examples.get_string_custom_property("data"))["name"]
        form = prepared.FORMATS[artifacts.stored_name(name)]
        files = sorted(tf.io.gfile.glob(posixpath.join(artifacts.mounted_path(examples.uri), f"Split-{split}", "*")))
        directory = posixpath.join(artifacts.mounted_path(requests.uri), f"Split-{split}")
        tf.io.gfile.makedirs(directory)
        with tf.io.TFRecordWriter(posixpath.join(directory, "requests-00000-of-00001")) as writer:
            for record in tf.data.TFRecordDataset(files).take(EXAMPLES):
                image = tf.train.Example.FromString(record.numpy()).features.feature[form.image]
                request = tf.train.Example(features=tf.train.Features(feature={IMAGE_FEATURE: image}))
                writer.write(request.SerializeToString())
        requests.split_names = artifact_utils.encode_split_names([split])


class RequestsSpec(types.ComponentSpec):
    PARAMETERS = {"split": ExecutionParameter(type=str), "program": ExecutionParameter(type=str)}
    INPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}
    OUTPUTS = {"requests": ChannelParameter(type=standard_artifacts.Examples)}


class Requests(base_component.BaseComponent):
    """TFX component that outputs `requests`, a few tf.Examples with images of a split."""

    SPEC_CLASS = RequestsSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(RequestsExecutor)

    def __init__(self, examples: types.BaseChannel, split: str):
        super().__init__(
            RequestsSpec(
                examples=examples,
                split=split,
                program=code_digest.code_digest(__name__),
                requests=types.Channel(type=standard_artifacts.Examples),
            )
        )
