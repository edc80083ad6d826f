"""The listeners: TLS, UNIX sockets, health, reflection, deadlines, the request log and draining."""

import datetime
import ipaddress
import socket
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tensorflow_serving.apis import model_pb2, prediction_service_pb2_grpc

from serving.errors import ServingError
from tests.helpers import running_servers, small_servables
from tests.helpers.grpc_requests import FLOATS, SECONDS, assert_healthy, predict_request, random_image, refusal, until
from tests.helpers.running_servers import QUICK


def test_health_under_the_names_of_tensorflow_model_server(server, stubs):
    health = health_pb2_grpc.HealthStub(stubs.channel)
    for name in ("", "ModelService", "PredictionService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=SECONDS).status == 1
    assert refusal(health.Check, health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService"))[0] == (
        "NOT_FOUND"
    )


def test_reflection_lists_the_services_and_their_methods(stubs):
    database = ProtoReflectionDescriptorDatabase(stubs.channel)
    assert set(database.get_services()) == {
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    file = database.FindFileContainingSymbol("tensorflow.serving.PredictionService")
    assert {method.name for method in file.service[0].method} >= {"Predict", "Classify", "GetModelMetadata"}


def test_responses_in_tensor_content(base):
    small_servables.segmentation(base / "content", 1)
    options = replace(
        QUICK, model_name="seg", model_base_path=str(base / "content"), enable_serialization_as_tensor_content=True
    )
    pixels, png = random_image()
    with running_servers.running(options) as server, running_servers.connected(server) as stubs:
        response = stubs.predictions.Predict(predict_request("seg", "predict_tensor", image=pixels[None]))
        assert response.outputs["class_map"].tensor_content == small_servables.ids_of(pixels).tobytes()
        response = stubs.predictions.Predict(predict_request("seg", image_bytes=np.array([png], object)))
        assert response.outputs["png_bytes"].string_val and not response.outputs["png_bytes"].tensor_content


@pytest.fixture
def short_directory():
    """A directory with a short path; pytest's are too long for a socket."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_a_unix_socket_without_a_port(base, short_directory):
    small_servables.half_plus_two(base / "socket", 2)
    path = short_directory / "serving.sock"
    # A killed server leaves such a socket file.
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    options = replace(
        QUICK, port=0, grpc_socket_path=str(path), model_name="half", model_base_path=str(base / "socket")
    )
    with running_servers.running(options) as server:
        assert server.grpc_port == 0
        with grpc.insecure_channel(f"unix:{path}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            response = stub.Predict(predict_request("half", x=FLOATS), timeout=SECONDS)
            assert response.outputs["y"].float_val[0] == 2.5
        with pytest.raises(ServingError, match="another server uses it"), running_servers.running(options):
            pass
    (short_directory / "file").touch()
    with pytest.raises(ServingError, match="is not a socket"):
        with running_servers.running(replace(options, grpc_socket_path=str(short_directory / "file"))):
            pass


@pytest.fixture(scope="module")
def keys():
    """Return the PEM of an authority, and of a key and its certificate for 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509", reason="certificates are made by cryptography")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def named(name):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    now = datetime.datetime.now(datetime.UTC)

    def certified(name, signed_by, is_authority):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        return key, builder.sign(signed_by or key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority_key, authority = certified("authority", None, True)
    key, certificate = certified("server", authority_key, False)
    return (
        authority,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate,
    )


@pytest.mark.parametrize("client_verify", [False, True])
def test_tls(base, tmp_path, keys, client_verify):
    authority, key, certificate = keys
    if not (base / "tls").exists():
        small_servables.half_plus_two(base / "tls", 2)
    config = tmp_path / "ssl.config"
    lines = {"server_key": key, "server_cert": certificate, "custom_ca": authority}
    config.write_text(
        "".join(f"{name}: {value.decode()!r}\n" for name, value in lines.items())
        + f"client_verify: {str(client_verify).lower()}\n"
    )
    options = replace(QUICK, model_name="half", model_base_path=str(base / "tls"), ssl_config_file=str(config))
    request = predict_request("half", x=FLOATS)
    with running_servers.running(options) as server:
        for credentials, welcome in (
            (grpc.ssl_channel_credentials(authority), not client_verify),
            (grpc.ssl_channel_credentials(authority, key, certificate), True),
        ):
            with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                if welcome:
                    assert stub.Predict(request, timeout=SECONDS).outputs["y"].float_val[0] == 2.5
                else:
                    assert refusal(stub.Predict, request, 5)[0] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        with running_servers.connected(server) as clear:
            assert refusal(clear.predictions.Predict, request, 5)[0] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_all_requests_are_logged_with_their_fields(server, stubs, caplog):
    caplog.set_level("INFO", "serving")
    assert_healthy(stubs)
    refusal(stubs.predictions.Predict, predict_request("none", x=FLOATS))
    until(lambda: len([record for record in caplog.records if record.getMessage() == "request"]) == 2)
    good, bad = (record.fields for record in caplog.records if record.getMessage() == "request")
    assert (good["method"], good["model"], good["version"], good["signature"], good["status"]) == (
        "Predict",
        "half",
        2,
        "serving_default",
        "OK",
    )
    assert good["milliseconds"] > 0 and good["peer"].startswith("ipv4:127.0.0.1:")
    assert (bad["status"], bad["message"]) == ("NOT_FOUND", "Servable not found for request: Latest(none)")


def test_draining_is_reported_and_requests_are_still_answered(base):
    small_servables.half_plus_two(base / "drained", 2)
    options = replace(
        QUICK, model_name="half", model_base_path=str(base / "drained"), enable_grpc_healthcheck_service=True
    )
    with running_servers.running(options) as server, running_servers.connected(server) as stubs:
        health = health_pb2_grpc.HealthStub(stubs.channel)
        assert_healthy(stubs)
        ending = threading.Thread(target=server.stop, args=(3,))
        ending.start()
        until(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status == 2)
        assert_healthy(stubs)
        ending.join()
        server.wait()
        assert refusal(stubs.predictions.Predict, predict_request("half", x=FLOATS))[0] == "UNAVAILABLE"


def test_a_deadline_reaches_the_model(server, stubs):
    # The client would also end the request at its deadline, so the test reads the deadline in the model.
    deadlines = []
    with server.models.use(model_pb2.ModelSpec(name="half")) as handle:
        model, run = handle.model, handle.model.run

        def watched(signature, inputs, outputs, deadline):
            deadlines.append(deadline)
            return run(signature, inputs, outputs, deadline)

        model.run = watched
        try:
            now = time.monotonic()
            stubs.predictions.Predict(predict_request("half", x=FLOATS), timeout=60)
            answered = time.monotonic()
            stubs.predictions.Predict(predict_request("half", x=FLOATS))
        finally:
            del model.run
    # gRPC transmits deadlines in milliseconds or coarser units.
    assert now + 55 < deadlines[0] < answered + 61 and deadlines[1] is None
