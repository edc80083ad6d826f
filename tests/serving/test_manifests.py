"""The files that run TensorFlow Serving's image: each is what its format allows, and all say the same."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import serving
from serving.config import flags, protos
from serving.core import batch_tensors
from tests.helpers import manifest_checks

SERVING = Path(serving.__file__).parent
BASE, GPU = SERVING / "kubernetes" / "base", SERVING / "kubernetes" / "gpu"
CONFIGS = ("batching.config", "models.config", "monitoring.config")
# Keys of a service that the files use, with their types (compose specification).
COMPOSE = {"init": bool, "restart": str, "stop_grace_period": str, "entrypoint": list, "user": str, "read_only": bool,
           "tmpfs": list, "cap_drop": list, "security_opt": list, "ports": list, "volumes": list, "mem_limit": str,
           "healthcheck": dict, "image": str, "cpus": int, "command": list, "profiles": list, "environment": dict,
           "deploy": dict}
HEALTH_CHECK = {"test": list, "interval": str, "timeout": str, "retries": int, "start_period": str}
# Fields of KServe's own; beside them a predictor holds a PodSpec's, its model a Container's (v1beta1 of its API).
KSERVE = {"predictor": {"minReplicas", "maxReplicas", "containerConcurrency", "timeout", "model"},
          "model": {"modelFormat", "runtime", "runtimeVersion", "protocolVersion", "storageUri"}}


def manifests(name):
    """The resources of serving/kubernetes/NAME by kind and name."""
    resources = manifest_checks.built(SERVING / "kubernetes" / name)
    return {(each["kind"], each["metadata"]["name"]): each for each in resources}


def container(name):
    (found,) = manifests(name)["Deployment", "segmentation"]["spec"]["template"]["spec"]["containers"]
    return found


def interpolated(text, **environment):
    """A compose file as docker compose reads it, where the environment sets those variables."""
    text = re.sub(r"(?<!\$)\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1], found[2]), text)
    assert not re.search(r"(?<!\$)\$(?!\$)", text), "a variable without a default"
    return text.replace("$$", "$")


def compose(**environment):
    (document,) = manifest_checks.documents(interpolated((SERVING / "compose.yaml").read_text(), **environment))
    return document


def inference_services():
    return manifest_checks.documents((SERVING / "kserve.yaml").read_text())


def parsed(arguments):
    """The flags' values; every one must be a flag of tensorflow_model_server that this project's server knows."""
    fields = {each.name: each for each in dataclasses.fields(flags.Options)}
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--").partition("=")
        assert argument.startswith("--") and equals, argument
        assert name in fields and not fields[name].metadata["help"].startswith(flags.OWN), argument
    assert len({argument.partition("=")[0] for argument in arguments}) == len(arguments), "a flag given twice"
    return flags.parse_flags(arguments)


def all_options():
    """The options that each of the files starts a server with, by place."""
    options = {f"compose.yaml {name}": parsed(service["command"]) for name, service in compose()["services"].items()}
    for name in ("base", "gpu"):
        cpus = container(name)["resources"]["limits"]["cpu"]
        options[f"kubernetes/{name}"] = parsed([each.replace("$(CPUS)", cpus) for each in container(name)["args"]])
    return options


def model_config():
    config = text_format.Parse((SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    return model


def monitoring_config():
    return protos.parse_text_proto(SERVING / "monitoring.config", protos.MonitoringConfig, "MonitoringConfig").prometheus_config


# Formats


def test_the_models_are_those_that_can_be_promoted():
    model = model_config()
    assert model.name == "segmentation" and model.model_platform == "tensorflow"
    versions = set(model.model_version_policy.specific.versions)
    assert set(model.version_labels) == {"stable", "canary"}
    assert versions == set(model.version_labels.values())


def test_configuration_files_are_messages():
    assert monitoring_config().enable
    parameters = protos.parse_text_proto(SERVING / "batching.config", protos.BatchingParameters, "BatchingParameters")
    # Raises where they contradict each other.
    settings = batch_tensors.read_settings(parameters)
    assert parameters.allowed_batch_sizes[-1] == parameters.max_batch_size.value == settings.max_request_rows
    # A server pads with a picture's first value and does not cut answers back.
    assert not parameters.pad_variable_length_inputs


@pytest.mark.parametrize("name", ["base", "gpu"])
def test_kubernetes_resources_have_no_unknown_field_and_no_wrong_type(name):
    found = [line for each in manifests(name).values() for line in manifest_checks.problems(each)]
    assert not found


@pytest.mark.parametrize("change, complaint", [
    (lambda d: d["spec"].update(replica=2), "no field 'replica' in V1DeploymentSpec"),
    (lambda d: d["spec"].update(replicas="2"), "'2' is no int"),
    (lambda d: d["spec"].update(paused=1), "1 is no bool"),
    (lambda d: d["spec"].pop("selector"), "`selector`, must not be `None`"),
    (lambda d: d["spec"]["template"]["spec"]["containers"][0].update(livenessprobe={}), "no field 'livenessprobe'"),
    (lambda d: d["spec"]["template"]["spec"]["containers"][0].update(args="--port=1"), "is no list"),
    (lambda d: d["spec"]["template"]["spec"]["containers"][0]["ports"][0].pop("containerPort"), "`container_port`"),
    (lambda d: d["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].update(cpu=4), "4 is no str"),
    (lambda d: d["spec"]["template"]["metadata"]["labels"].update(canary=True), "True is no str"),
    (lambda d: d.update(kind="Deploymnet"), "unknown kind")])
def test_the_check_of_kubernetes_resources_sees_mistakes(change, complaint):
    deployment = manifests("base")["Deployment", "segmentation"]
    change(deployment)
    (found,) = manifest_checks.problems(deployment)
    assert complaint in found


def test_a_key_that_stands_twice_is_no_yaml():
    with pytest.raises(yaml.YAMLError, match="twice"):
        manifest_checks.documents("spec:\n  replicas: 1\n  replicas: 2\n")


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which holds kustomize, is not installed")
@pytest.mark.parametrize("name", ["base", "gpu"])
def test_kustomize_builds_the_same_resources(name):
    text = subprocess.run(["kubectl", "kustomize", SERVING / "kubernetes" / name], capture_output=True, text=True,
                          check=True, timeout=60).stdout
    theirs = {manifest_checks.identity(each): manifest_checks.sorted_by_name(each) for each in
              manifest_checks.documents(text)}
    ours = {manifest_checks.identity(each): manifest_checks.sorted_by_name(each) for each in
            manifest_checks.built(SERVING / "kubernetes" / name)}
    assert theirs == ours


def test_kserve_services_have_known_fields():
    for document in inference_services():
        assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
        predictor = document["spec"]["predictor"]
        model = predictor["model"]
        pod = {key: value for key, value in predictor.items() if key not in KSERVE["predictor"]}
        rest = {key: value for key, value in model.items() if key not in KSERVE["model"]}
        # A container and a pod must have what KServe adds itself.
        assert not manifest_checks.part_problems(rest | {"name": "kserve-container"}, "V1Container", "model")
        assert not manifest_checks.part_problems(pod | {"containers": []}, "V1PodSpec", "predictor")
        assert model["modelFormat"]["name"] == "tensorflow" and model["runtimeVersion"] == "2.20.0"
    assert [each["spec"]["predictor"]["model"]["protocolVersion"] for each in inference_services()] == ["v1", "grpc-v1"]


# What they say together


def test_the_config_map_holds_the_configuration_files():
    data = manifests("base")["ConfigMap", "segmentation-config"]["data"]
    assert data == {name: (SERVING / name).read_text() for name in CONFIGS}


def test_flags_are_known_and_name_files_that_are_mounted():
    for place, options in all_options().items():
        for name in ("model_config_file", "monitoring_config_file", "batching_parameters_file"):
            path = getattr(options, name)
            if path:
                assert Path(path).parent == Path("/config") and Path(path).name in CONFIGS, (place, path)
        assert options.model_config_file and options.monitoring_config_file, place
        assert options.model_config_file_poll_wait_seconds > 0, place
        # A file of parameters without the flag is an error, and so are labels of versions that are not loaded yet.
        assert options.enable_batching == bool(options.batching_parameters_file) == ("gpu" in place), place
        assert options.allow_version_labels_for_unavailable_models, place
        assert options.enable_grpc_healthcheck_service, place
        assert (options.port, options.rest_api_port) == (8500, 8501), place


def test_cpu_servers_run_one_thread_for_each_request_and_as_many_as_they_have_cpus():
    options = all_options()
    limits = {"compose.yaml serving": compose()["services"]["serving"]["cpus"],
              "kubernetes/base": int(container("base")["resources"]["limits"]["cpu"])}
    for place, cpus in limits.items():
        assert options[place].tensorflow_intra_op_parallelism == 1, place
        assert options[place].tensorflow_inter_op_parallelism == cpus, place
    service = compose(CPUS="7")["services"]["serving"]
    assert parsed(service["command"]).tensorflow_inter_op_parallelism == service["cpus"] == 7
    # An expansion that Kubernetes does not know would reach the server as it stands.
    names = {each["name"] for each in container("base")["env"]}
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container("base")["args"]))) <= names
    for document in inference_services():
        model = document["spec"]["predictor"]["model"]
        assert parsed(model["args"]).tensorflow_inter_op_parallelism == int(model["resources"]["limits"]["cpu"])
        assert model["resources"]["limits"] == model["resources"]["requests"]


def test_models_lie_under_what_is_mounted():
    base_path = Path(model_config().base_path)
    for name in ("base", "gpu"):
        spec = manifests(name)["Deployment", "segmentation"]["spec"]["template"]["spec"]
        mounts = {each["name"]: each for each in container(name)["volumeMounts"]}
        volumes = {each["name"]: each for each in spec["volumes"]}
        assert mounts.keys() == volumes.keys()
        assert base_path.is_relative_to(mounts["models"]["mountPath"]) and mounts["models"]["readOnly"]
        assert mounts["config"]["mountPath"] == "/config" and "subPath" not in mounts["config"]
        claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
        assert ("PersistentVolumeClaim", claim) in manifests(name)
        assert ("ConfigMap", volumes["config"]["configMap"]["name"]) in manifests(name)
    for service in compose()["services"].values():
        assert service["volumes"] == ["../served:/models:ro", ".:/config:ro"]
    for document in inference_services():
        uri = document["spec"]["predictor"]["model"]["storageUri"]
        assert uri == f"pvc://{claim}/{base_path.relative_to('/models')}"


def test_probes_ask_the_configured_model_and_the_scrape_its_path():
    metadata = f"/v1/models/{model_config().name}/metadata"
    path = monitoring_config().path
    for name in ("base", "gpu"):
        ports = {each["name"]: each["containerPort"] for each in container(name)["ports"]}
        assert ports == {"grpc": 8500, "rest": 8501}
        for probe in ("startupProbe", "readinessProbe"):
            assert container(name)[probe]["httpGet"] == {"path": metadata, "port": "rest"}
        assert container(name)["livenessProbe"]["grpc"] == {"port": 8500}
        annotations = manifests(name)["Deployment", "segmentation"]["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/path"] == path and annotations["prometheus.io/port"] == "8501"
    rest, grpc = (document["spec"]["predictor"]["model"] for document in inference_services())
    assert rest["readinessProbe"]["httpGet"]["path"] == metadata
    assert rest["args"][0] == "--monitoring_config_file=/config/monitoring.config"
    assert inference_services()[0]["metadata"]["annotations"]["prometheus.kserve.io/path"] == path
    assert f"GET {metadata} HTTP" in compose()["services"]["serving"]["healthcheck"]["test"][-1]
    assert f"metrics_path: {path}\n" in (SERVING / "prometheus_rules.yaml").read_text()


@pytest.mark.parametrize("name", ["base", "gpu"])
def test_selectors_and_targets_meet(name):
    resources = manifests(name)
    deployment = resources["Deployment", "segmentation"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [deployment["selector"]["matchLabels"], resources["Service", "segmentation"]["spec"]["selector"],
                 resources["Service", "segmentation-grpc"]["spec"]["selector"],
                 resources["PodDisruptionBudget", "segmentation"]["spec"]["selector"]["matchLabels"],
                 resources["NetworkPolicy", "segmentation"]["spec"]["podSelector"]["matchLabels"]]
    assert all(each and each.items() <= labels.items() for each in selectors)
    ports = {each["name"]: each["containerPort"] for each in container(name)["ports"]}
    for service in ("segmentation", "segmentation-grpc"):
        for port in resources["Service", service]["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    # A connection to one address would keep to one pod.
    assert resources["Service", "segmentation-grpc"]["spec"]["clusterIP"] == "None"
    for rule in resources["NetworkPolicy", "segmentation"]["spec"]["ingress"]:
        assert {each["port"] for each in rule["ports"]} <= ports.keys()
    scaler = resources.get(("HorizontalPodAutoscaler", "segmentation"))
    if scaler:
        assert ("Deployment", scaler["spec"]["scaleTargetRef"]["name"]) in resources
    # Otherwise each `kubectl apply` would undo what the autoscaler did, or leave one replica where there is none.
    assert ("replicas" in deployment) == (scaler is None) == (name == "gpu")


@pytest.mark.parametrize("name", ["base", "gpu"])
def test_pods_end_after_the_pause_and_may_do_no_more_than_serve(name):
    spec = manifests(name)["Deployment", "segmentation"]["spec"]["template"]["spec"]
    command, seconds = container(name)["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep" and int(seconds) < spec["terminationGracePeriodSeconds"] <= int(seconds) + 10
    assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
    rights = container(name)["securityContext"]
    assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert container(name)["resources"]["limits"] == container(name)["resources"]["requests"]
    assert container(name)["image"] == "tensorflow/serving:2.20.0" + ("-gpu" if name == "gpu" else "")


def test_compose_services_are_shut_in():
    assert set(compose()) == {"name", "x-serving", "services"}
    services = compose()["services"]
    assert [service["image"] for service in services.values()] == [
        "tensorflow/serving:2.20.0", "tensorflow/serving:2.20.0-gpu"]
    for service in services.values():
        assert all(type(value) is COMPOSE[key] for key, value in service.items())
        assert all(type(value) is HEALTH_CHECK[key] for key, value in service["healthcheck"].items())
        assert service["init"] is True and service["read_only"] is True and service["cap_drop"] == ["ALL"]
        assert int(service["user"].split(":")[0]) > 0 and re.fullmatch(r"\d+g", service["mem_limit"])
        assert service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
