"""TFX's Pusher, whose version appears whole or not at all, once, with a model card in it."""

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

# No number, so that no server takes it for a version; in the same directory, so that one rename publishes.
STAGING = ".pushing"


class Executor(executor.Executor):
    """Lets TFX's executor push into a hidden directory, from which one rename takes the version to its place.

    Where the newest version there is this model already, as after a process was killed between that rename and the
    end of its run, it stays the version, and only its card is written again.
    """

    def CheckBlessing(self, input_dict: dict) -> bool:
        """Tell whether all blessings bless; TFX's InfraValidator's, too, where it was asked."""
        return super().CheckBlessing(input_dict) and all(
            model_utils.is_infra_validated(blessing) for blessing in input_dict.get("container_blessing") or ())

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination)
        base = Path(artifacts.mounted(destination.filesystem.base_directory))
        staging = base / STAGING
        # What a process left behind that was killed here.
        shutil.rmtree(staging, ignore_errors=True)
        destination.filesystem.base_directory = str(staging)
        hidden = exec_properties | {
            standard_component_specs.PUSH_DESTINATION_KEY: proto_utils.proto_to_json(destination)}
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        try:
            super().Do(input_dict, output_dict, hidden)
            if pushed.get_int_custom_property("pushed") != 1:
                return
            staged, there = staging / pushed.get_string_custom_property("pushed_version"), newest(base)
            adopted = there is not None and same(staged, there)
            place = there if adopted else base / staged.name
            inputs = {key: artifact_utils.get_single_instance(found) for key, found in input_dict.items() if found}
            (staged / model_card.NAME).write_text(model_card.text(place.name, inputs), encoding="utf-8")
            if adopted:
                os.replace(staged / model_card.NAME, place / model_card.NAME)
            else:
                publish(staged, place)
            pushed.set_string_custom_property("pushed_destination", str(place))
            pushed.set_string_custom_property("pushed_version", place.name)
            pushed.set_int_custom_property("adopted", int(adopted))
        except OSError as error:
            raise UserError(f"cannot push to {base}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def publish(staged: Path, place: Path) -> None:
    """Take a version to its place in one step; raises UserError where there is one."""
    if place.exists():
        raise UserError(f"{place} is there already; push again")
    os.replace(staged, place)


def newest(base: Path) -> Path | None:
    """Return the version with the highest number, which a server serves; None where there is none."""
    versions = [path for path in base.iterdir() if path.name.isdecimal() and path.is_dir()]
    return max(versions, key=lambda path: int(path.name), default=None)


def same(one: Path, other: Path) -> bool:
    """Tell whether two versions hold the same files, byte for byte, beside their cards."""
    def files(version: Path) -> set[Path]:
        return {path.relative_to(version) for path in version.rglob("*") if path.is_file()} - {Path(model_card.NAME)}

    found = files(one)
    return found == files(other) and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in sorted(found))


class PusherSpec(types.ComponentSpec):
    PARAMETERS = standard_component_specs.PusherSpec.PARAMETERS | {"program": ExecutionParameter(type=str)}
    INPUTS = standard_component_specs.PusherSpec.INPUTS | {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "container_blessing": ChannelParameter(type=standard_artifacts.InfraBlessing, optional=True)}
    OUTPUTS = standard_component_specs.PusherSpec.OUTPUTS


class Pusher(base_component.BaseComponent):
    """Pushes a model that all blessings bless to DIRECTORY/VERSION; gives `pushed_model`."""

    SPEC_CLASS = PusherSpec
    EXECUTOR_SPEC = executor_specs.ExecutorClassSpec(Executor)

    def __init__(self, model: types.BaseChannel, model_blessing: types.BaseChannel, examples: types.BaseChannel,
                 evaluation: types.BaseChannel, directory: str, infra_blessing: types.BaseChannel | None = None,
                 container_blessing: types.BaseChannel | None = None):
        filesystem = pusher_pb2.PushDestination.Filesystem(base_directory=directory)
        super().__init__(PusherSpec(
            model=model, model_blessing=model_blessing, infra_blessing=infra_blessing,
            container_blessing=container_blessing, examples=examples, evaluation=evaluation,
            push_destination=pusher_pb2.PushDestination(filesystem=filesystem), custom_config="null",
            program=code_digest.digest(__name__), pushed_model=types.Channel(type=standard_artifacts.PushedModel)))
