"""Which versions of a model shall be served: those in its base path that its policy takes; checks of a config."""

import re
from pathlib import Path

from tensorflow_serving.config import model_server_config_pb2 as config_pb2

from serving.errors import invalid

PLATFORM = "tensorflow"
# As a 64-bit signed integer is written; zeros may lead.
NUMBER = re.compile(r"[+-]?[0-9]+")


def versions_in(base_path: Path) -> dict[int, Path]:
    """Return {version: directory} of a base path; directories whose name is no int64 are something else's.

    Raises OSError where the base path cannot be listed.
    """
    found = {}
    # Sorted, so that of 7 and 007 it is always the same one.
    for path in sorted(Path(base_path).iterdir()):
        if NUMBER.fullmatch(path.name) and -2**63 <= int(path.name) < 2**63 and path.is_dir():
            found[int(path.name)] = path
    return found


def chosen(model: config_pb2.ModelConfig, found: dict[int, Path]) -> dict[int, Path]:
    """Return those versions that a model's policy takes: the latest, unless it says something else."""
    policy = model.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return dict(found)
    if kind == "specific":
        return {version: found[version] for version in policy.specific.versions if version in found}
    # 0 where it is not set.
    return {version: found[version] for version in sorted(found)[-max(policy.latest.num_versions, 1):]}


def check(models: list[config_pb2.ModelConfig]) -> None:
    """Raise ServingError INVALID_ARGUMENT where a list of models cannot be served."""
    names = set()
    for model in models:
        if model.name in names:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
        if "\0" in model.base_path:
            raise invalid(f"Expected model {model.name} to have an absolute path or URI; got one with a null character")
        if "://" in model.base_path:
            raise invalid(f"Expected model {model.name} to have an absolute path, since this server reads no URIs; "
                          f"got base_path()={model.base_path}")
        if not Path(model.base_path).is_absolute():
            raise invalid(f"Expected model {model.name} to have an absolute path or URI; "
                          f"got base_path()={model.base_path}")
        # 1: TENSORFLOW, in a field from before there were platforms.
        platform = model.model_platform or (PLATFORM if model.model_type == 1 else "")
        if not platform:
            raise invalid("Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                          f"ModelServerConfig::model_platform, model name is {model.name}")
        if platform != PLATFORM:
            raise invalid(f"Model {model.name} requests unsupported platform {platform}; there is {PLATFORM} alone")
