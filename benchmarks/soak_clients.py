"""Clients of benchmarks.soak: they compare answers byte for byte, and send bad requests that must be refused."""

import base64
import http.client
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from benchmarks.small_exports import Arrays, Case, equal

TIMEOUT = 60.0
# Fraction of bad requests.
BAD_FRACTION = 0.1
# Maximum number of problems that are printed; the others are only counted.
MAX_PROBLEMS = 10


class Timeline:
    """The versions that may answer at a time: during a change, both the old and the new one."""

    def __init__(self, version: int):
        self.lock, self.entries = threading.Lock(), [(0.0, frozenset([version]))]

    def change(self, versions: set[int]) -> None:
        with self.lock:
            self.entries.append((time.monotonic(), frozenset(versions)))

    def allowed(self, begin: float, end: float) -> set[int]:
        """Return the versions that may have answered a request between `begin` and `end`."""
        with self.lock:
            entries = list(self.entries)
        ends = [start for start, _ in entries[1:]] + [float("inf")]
        return set().union(
            *(versions for (start, versions), stop in zip(entries, ends) if start <= end and stop >= begin)
        )


@dataclass
class Tally:
    """Counts of the answers to one client or to all clients."""

    good: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    failed: int = 0
    wrong: int = 0
    # Maximum seconds until an answer.
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.good.update(other.good)
        self.refused.update(other.refused)
        self.failed += other.failed
        self.wrong += other.wrong
        self.slowest = max(self.slowest, other.slowest)
        self.problems.extend(other.problems)

    def problem(self, kind: str, text: str) -> None:
        """Count a problem of kind "failed" (request) or "wrong" (answer)."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{kind}: {' '.join(text.split())[:300]}")


@dataclass(frozen=True)
class Expected:
    """The model's name, the requests, and their answers by `answers[version % len(answers)]`."""

    model: str
    cases: list[Case]
    answers: list[list[Arrays]]

    def answer(self, version: int, case: int) -> Arrays:
        return self.answers[version % len(self.answers)][case]


class Client:
    """A client that sends requests and checks their answers until it is stopped."""

    def __init__(self, expected: Expected, timeline: Timeline, seed: int):
        self.expected, self.timeline, self.random = expected, timeline, random.Random(seed)
        self.tally = Tally()

    def work(self, stopped: threading.Event) -> None:
        while not stopped.is_set():
            if self.random.random() < BAD_FRACTION:
                self.send_bad()
            else:
                self.send_good(self.random.randrange(len(self.expected.cases)))

    def allowed(self, begin: float) -> set[int]:
        """Return the versions that may have answered a request sent at `begin` and answered now."""
        end = time.monotonic()
        self.tally.slowest = max(self.tally.slowest, end - begin)
        return self.timeline.allowed(begin, end)


class GrpcClient(Client):
    """A gRPC client; answers name their version."""

    def __init__(self, server: str, expected: Expected, timeline: Timeline, seed: int):
        super().__init__(expected, timeline, seed)
        channel = grpc.insecure_channel(
            server, [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        )
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.requests = [case.message(expected.model) for case in expected.cases]
        self.bad = bad_messages(expected)

    def send_good(self, case: int) -> None:
        begin = time.monotonic()
        try:
            response = self.stub.Predict(self.requests[case], timeout=TIMEOUT)
        except grpc.RpcError as error:
            signature = self.expected.cases[case].signature
            self.tally.problem("failed", f"gRPC {signature}: {error.code()} {error.details()}")
            return
        allowed = self.allowed(begin)
        version, signature = response.model_spec.version.value, response.model_spec.signature_name
        outputs = {name: tf.make_ndarray(values) for name, values in response.outputs.items()}
        if version not in allowed or signature != self.expected.cases[case].signature:
            self.tally.problem("wrong", f"version {version} of {signature} instead of one of {sorted(allowed)}")
        elif not equal(outputs, self.expected.answer(version, case)):
            self.tally.problem("wrong", f"gRPC {signature} of version {version}")
        else:
            self.tally.good["gRPC " + signature] += 1

    def send_bad(self) -> None:
        name, request, timeout, code = self.random.choice(self.bad)
        try:
            call = self.stub.Predict.future(request, timeout=timeout)
            if code is grpc.StatusCode.CANCELLED:
                time.sleep(self.random.uniform(0, 0.01))
                call.cancel()
            call.result()
        except grpc.FutureCancelledError:
            self.tally.refused[f"gRPC {name}: CANCELLED"] += 1
        except grpc.RpcError as error:
            late = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
            # The batching queue may refuse a request before the client notices that its deadline has passed.
            if error.code() is code or code in late and error.code() in late:
                self.tally.refused[f"gRPC {name}: {error.code().name}"] += 1
            else:
                self.tally.problem("failed", f"gRPC {name}: {error.code()} instead of {code}: {error.details()}")
        else:
            # A request may be answered before it is canceled.
            if code is not grpc.StatusCode.CANCELLED:
                self.tally.problem("failed", f"gRPC {name}: answered instead of {code}")


class RestClient(Client):
    """A REST client; an answer must be that of a version that was served at the time."""

    def __init__(self, server: str, expected: Expected, timeline: Timeline, seed: int):
        super().__init__(expected, timeline, seed)
        self.connection = http.client.HTTPConnection(server, timeout=TIMEOUT)
        self.bodies = [
            json.dumps(
                {
                    "signature_name": case.signature,
                    "inputs": {name: _json(values) for name, values in case.inputs.items()},
                }
            ).encode()
            for case in expected.cases
        ]
        self.bad = bad_bodies(expected)

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and body of the answer, or status 0 without an answer."""
        try:
            self.connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            return 0, repr(error).encode()

    def send_good(self, case: int) -> None:
        begin = time.monotonic()
        status, text = self.post(f"/v1/models/{self.expected.model}:predict", self.bodies[case])
        signature = self.expected.cases[case].signature
        if status != 200:
            self.tally.problem("failed", f"REST {signature}: {status} {text[:200]!r}")
            return
        allowed = self.allowed(begin)
        outputs = json.loads(text)["outputs"]
        if not any(_matches(outputs, self.expected.answer(version, case)) for version in allowed):
            self.tally.problem("wrong", f"REST {signature} of none of the versions {sorted(allowed)}")
        else:
            self.tally.good["REST " + signature] += 1

    def send_bad(self) -> None:
        name, path, body, expected = self.random.choice(self.bad)
        status, text = self.post(path, body)
        if status == expected and b"error" in text:
            self.tally.refused[f"REST {name}: {status}"] += 1
        else:
            self.tally.problem("failed", f"REST {name}: {status} instead of {expected}: {text[:200]!r}")


def _matches(outputs: dict | list, expected: Arrays) -> bool:
    """Return whether JSON outputs have the expected values; the only output of a signature has no name in JSON."""
    outputs = outputs if isinstance(outputs, dict) else dict.fromkeys(expected, outputs)
    decoded = {
        name: ([base64.b64decode(row["b64"]) for row in values] if name.endswith("_bytes") else values)
        for name, values in outputs.items()
    }
    return decoded == {name: values.tolist() for name, values in expected.items()}


def _json(values: np.ndarray) -> list:
    if values.dtype == object:
        return [{"b64": base64.b64encode(value).decode()} for value in values]
    return values.tolist()


def bad_messages(expected: Expected) -> list[tuple]:
    """Return bad requests as (name, request, timeout, expected status)."""
    code = grpc.StatusCode
    good = expected.cases[0].inputs["image_bytes"][0]

    def message(
        signature: str = "serving_default", model: str = expected.model, **inputs: np.ndarray
    ) -> predict_pb2.PredictRequest:
        return Case(signature, inputs).message(model)

    text, cut = np.array([b"not an image"], object), np.array([good[: len(good) // 2]], object)
    whole, pixels = np.array([good], object), np.zeros((1, 8, 8, 3), np.uint8)
    unknown_version, unknown_output, late = (message(image_bytes=whole) for _ in range(3))
    unknown_version.model_spec.version.value = 999_999
    unknown_output.output_filter.append("nothing")
    requests = [
        ("text as an image", message(image_bytes=text), TIMEOUT, code.INVALID_ARGUMENT),
        ("half an image", message(image_bytes=cut), TIMEOUT, code.INVALID_ARGUMENT),
        ("unknown model", message(model="nobody", image_bytes=whole), TIMEOUT, code.NOT_FOUND),
        ("unknown version", unknown_version, TIMEOUT, code.NOT_FOUND),
        ("unknown signature", message("nothing", image_bytes=whole), TIMEOUT, code.FAILED_PRECONDITION),
        ("unknown input", message(nothing=whole), TIMEOUT, code.INVALID_ARGUMENT),
        ("unknown output", unknown_output, TIMEOUT, code.INVALID_ARGUMENT),
        ("floats", message("predict_tensor", image=pixels.astype(np.float32)), TIMEOUT, code.INVALID_ARGUMENT),
        ("late", late, 1e-4, code.DEADLINE_EXCEEDED),
        ("canceled", expected.cases[1].message(expected.model), TIMEOUT, code.CANCELLED),
    ]
    if any("image" in case.inputs for case in expected.cases):
        requests.append(("wrong rank", message("predict_tensor", image=pixels[0]), TIMEOUT, code.INVALID_ARGUMENT))
    return requests


def bad_bodies(expected: Expected) -> list[tuple]:
    """Return bad requests as (name, path, body, expected status)."""
    path = f"/v1/models/{expected.model}:predict"
    text = json.dumps({"instances": [{"b64": base64.b64encode(b"not an image").decode()}]}).encode()
    return [
        ("text as an image", path, text, 400),
        ("invalid JSON", path, b'{"instances": [', 400),
        ("no inputs", path, b"{}", 400),
        ("unknown model", "/v1/models/nobody:predict", text, 404),
        ("unknown version", f"/v1/models/{expected.model}/versions/999999:predict", text, 404),
        ("unknown signature", path, text[:-1] + b', "signature_name": "nothing"}', 400),
        ("strings as pixels", path, b'{"signature_name": "predict_tensor", "instances": ["a"]}', 400),
        ("unknown verb", f"/v1/models/{expected.model}:explain", text, 400),
    ]
