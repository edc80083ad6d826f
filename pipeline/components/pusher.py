"""Push a model with TFX's Pusher: atomically, once per model, and with a model card."""

import filecmp
import os
import shutil
from pathlib import Path

from tfx import types
from tfx.components.pusher import executor
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_component
from tfx.dsl.components.base import executor_spec as executor_specs
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_artifacts, standard_component_specs
from tfx.types.component_spec import ChannelParameter, ExecutionParameter
from tfx.utils import proto_utils

from kseg.errors import UserError
from pipeline import artifacts
from pipeline.metadata import code_digest, model_card

# The name is not a number, so that servers ignore it. It lies next to the versions, so that one rename publishes.
STAGING = ".pushing"


class Executor(executor.Executor):
    """Run TFX's executor in a hidden directory, and publish the version with one rename.

    If the newest version already is this model, it is kept and only its card is rewritten. This happens when a process
    was killed between the rename and the end of its run.
    """

    def CheckBlessing(self, input_dict: dict) -> bool:
        """Return whether all blessings accept the model, including that of TFX's InfraValidator if it ran."""
        return super().CheckBlessing(input_dict) and all(
            model_utils.is_infra_validated(blessing) for blessing in input_dict.get("container_blessing") or ()
        )

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination)
        base = Path(artifacts.mounted_path(destination.filesystem.base_directory))
        staging = base / STAGING
        # A process killed in this function leaves the directory behind.
        shutil.rmtree(staging, ignore_errors=True)
        destination.filesystem.base_directory = str(staging)
        hidden = exec_properties | {
            standard_component_specs.PUSH_DESTINATION_KEY: proto_utils.proto_to_json(destination)
        }
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        try:
            super().Do(input_dict, output_dict, hidden)
            if pushed.get_int_custom_property("pushed") != 1:
                return
            staged, newest = staging / pushed.get_string_custom_property("pushed_version"), newest_version(base)
            adopted = newest is not None and same_files(staged, newest)
            version = newest if adopted else base / staged.name
            inputs = {key: artifact_utils.get_single_instance(values) for key, values in input_dict.items() if values}
            (staged / model_card.NAME).write_text(model_card.model_card_text(version.name, inputs), encoding="utf-8")
            if adopted:
                os.replace(staged / model_card.NAME, version / model_card.NAME)
            else:
                publish(staged, version)
            pushed.set_string_custom_property("pushed_destination", str(version))
            pushed.set_string_custom_property("pushed_version", version.name)
            pushed.set_int_custom_property("adopted", int(adopted))
        except OSError as error:
            raise UserError(f"cannot push to {base}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def publish(staged: Path, version: Path) -> None:
    """Rename a staged version to its final path; raises UserError if that exists."""
    if version.exists():
        raise UserError(f"{version} already exists; push again")
    os.replace(staged, version)


def newest_version(base: Path) -> Path | None:
    """Return the version with the highest number, None without versions."""
    versions = [path for path in base.iterdir() if path.name.isdecimal() and path.is_dir()]
    return max(versions, key=lambda path: int(path.name), default=None)


def same_files(one: Path, other: Path) -> bool:
    """Return whether two versions have identical files, apart from their model cards."""

    def files(version: Path) -> set[Path]:
        return {path.relative_to(version) for path in version.rglob("*") if path.is_file()} - {Path(model_card.NAME)}

    names = files(one)
    return names == files(other) and all(filecmp.cmp(one / name, other / name, shallow=False) for name in sorted(names))


class PusherSpec(types.ComponentSpec):
    PARAMETERS = standard_component_specs.PusherSpec.PARAMETERS | {"program": ExecutionParameter(type=str)}
    INPUTS = standard_component_specs.PusherSpec.INPUTS | {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "container_blessing": ChannelParameter(type=standard_artifacts.InfraBlessing, optional=True),
    }
    OUTPUTS = standard_component_specs.PusherSpec.OUTPUTS


class Pusher(base_component.BaseComponent):
    """TFX component that pushes an accepted model to DIRECTORY/VERSION and outputs `pushed_model`."""

    SPEC_CLASS = PusherSpec
    EXECUTOR_SPEC = executor_specs.ExecutorClassSpec(Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        model_blessing: types.BaseChannel,
        examples: types.BaseChannel,
        evaluation: types.BaseChannel,
        directory: str,
        infra_blessing: types.BaseChannel | None = None,
        container_blessing: types.BaseChannel | None = None,
    ):
        filesystem = pusher_pb2.PushDestination.Filesystem(base_directory=directory)
        super().__init__(
            PusherSpec(
                model=model,
                model_blessing=model_blessing,
                infra_blessing=infra_blessing,
                container_blessing=container_blessing,
                examples=examples,
                evaluation=evaluation,
                push_destination=pusher_pb2.PushDestination(filesystem=filesystem),
                custom_config="null",
                program=code_digest.code_digest(__name__),
                pushed_model=types.Channel(type=standard_artifacts.PushedModel),
            )
        )
