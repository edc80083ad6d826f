"""Kubernetes manifests as their API's own description reads them, and what kustomize makes of a directory of them."""

from pathlib import Path

import kubernetes.client
import yaml

KINDS = {("v1", "ConfigMap"): "V1ConfigMap", ("v1", "Service"): "V1Service",
         ("v1", "PersistentVolumeClaim"): "V1PersistentVolumeClaim", ("apps/v1", "Deployment"): "V1Deployment",
         ("autoscaling/v2", "HorizontalPodAutoscaler"): "V2HorizontalPodAutoscaler",
         ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
         ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy"}
SIMPLE = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": str}


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and not the last one's value."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1 and key != "<<"}
        if repeated:
            raise yaml.YAMLError(f"twice in one mapping: {sorted(repeated)}{node.start_mark}")
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[dict]:
    """Return a YAML file's documents; yaml.YAMLError where a key is repeated."""
    return list(yaml.load_all(text, _UniqueKeys))


def problems(document: dict) -> list[str]:
    """Return what is wrong with a manifest by its kind's description: unknown fields, types, what is missing."""
    kind = KINDS.get((document.get("apiVersion"), document.get("kind")))
    if kind is None:
        return [f"unknown kind: {document.get('apiVersion')} {document.get('kind')}"]
    return part_problems(document, kind, document["kind"])


def part_problems(value, kind: str, place: str) -> list[str]:
    """Return what is wrong with a value that shall be of a type of the client's, `V1PodSpec` or `list[str]` say."""
    if value is None or kind == "object":
        return []
    if kind.startswith("list["):
        if not isinstance(value, list):
            return [f"{place}: {value!r} is no list"]
        inner = kind[5:-1]
        return [line for index, item in enumerate(value) for line in part_problems(item, inner, f"{place}[{index}]")]
    if kind.startswith("dict("):
        if not isinstance(value, dict):
            return [f"{place}: {value!r} is no mapping"]
        inner = kind[5:-1].split(", ", 1)[1]
        return [line for key, item in value.items() for line in part_problems(item, inner, f"{place}.{key}")]
    if kind in SIMPLE:
        # A bool is an int to Python, not to Kubernetes.
        right = isinstance(value, SIMPLE[kind]) and (kind == "bool" or not isinstance(value, bool))
        return [] if right else [f"{place}: {value!r} is no {kind}"]
    return _model_problems(value, kind, place)


def _model_problems(value, kind: str, place: str) -> list[str]:
    model = getattr(kubernetes.client, kind)
    if not isinstance(value, dict):
        return [f"{place}: {value!r} is no {kind}"]
    fields = {key: name for name, key in model.attribute_map.items()}
    found = [f"{place}: no field {key!r} in {kind}" for key in value if key not in fields]
    for key, item in value.items():
        if key in fields:
            found += part_problems(item, model.openapi_types[fields[key]], f"{place}.{key}")
    try:
        # Its constructor knows which fields must be there; the parts have been looked at above.
        model(**{fields[key]: item for key, item in value.items() if key in fields})
    except ValueError as error:
        found.append(f"{place}: {error}")
    return found


def built(directory: Path) -> list[dict]:
    """Return what `kubectl kustomize` makes of a directory with `resources` and `patches`, without its order."""
    (kustomization,) = documents((directory / "kustomization.yaml").read_text())
    unknown = kustomization.keys() - {"apiVersion", "kind", "resources", "patches"}
    assert not unknown, unknown
    resources = []
    for name in kustomization["resources"]:
        path = directory / name
        resources += built(path) if path.is_dir() else documents(path.read_text())
    for patch in kustomization.get("patches", []):
        for document in documents((directory / patch["path"]).read_text()):
            (index,) = [i for i, other in enumerate(resources) if identity(other) == identity(document)]
            if document.pop("$patch", None) == "delete":
                del resources[index]
            else:
                resources[index] = _merged(resources[index], document)
    return resources


def identity(document: dict) -> tuple[str, str, str]:
    """Return what tells a resource from all others."""
    return document["apiVersion"], document["kind"], document["metadata"]["name"]


def _merged(old, new):
    """Merge as Kubernetes does: mappings by key, lists of named things by name, anything else is replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _merged(old[key], value) if key in old else value for key, value in new.items()}
    if isinstance(old, list) and all(isinstance(item, dict) and "name" in item for item in [*old, *new]):
        by_name = {item["name"]: item for item in old}
        for item in new:
            by_name[item["name"]] = _merged(by_name.get(item["name"], {}), item)
        return list(by_name.values())
    return new


def sorted_by_name(value):
    """Return the same with every list of named things in their names' order, for comparing."""
    if isinstance(value, dict):
        return {key: sorted_by_name(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [sorted_by_name(item) for item in value]
        named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: item["name"]) if named else items
    return value
