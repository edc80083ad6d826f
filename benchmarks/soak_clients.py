"""The clients of soak.py: good requests whose answers are compared byte for byte, and bad ones that must be refused."""

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
# Of requests that are bad.
BAD_SHARE = 0.1
# Problems that are told with their words; the others are counted.
TOLD = 10


class Timeline:
    """Which versions may answer at which time: while a version is exchanged both the old and the new one."""

    def __init__(self, version: int):
        self.lock, self.entries = threading.Lock(), [(0.0, frozenset([version]))]

    def change(self, versions: set[int]) -> None:
        with self.lock:
            self.entries.append((time.monotonic(), frozenset(versions)))

    def allowed(self, begin: float, end: float) -> set[int]:
        """Return those that may have answered a request that lasted from `begin` to `end`."""
        with self.lock:
            entries = list(self.entries)
        ends = [start for start, _ in entries[1:]] + [float("inf")]
        return set().union(*(versions for (start, versions), stop in zip(entries, ends)
                             if start <= end and stop >= begin))


@dataclass
class Tally:
    """What one client, or all of them, have seen."""

    good: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    failed: int = 0
    wrong: int = 0
    # Seconds that an answer took.
    slowest: float = 0.0
    told: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.good.update(other.good)
        self.refused.update(other.refused)
        self.failed += other.failed
        self.wrong += other.wrong
        self.slowest = max(self.slowest, other.slowest)
        self.told.extend(other.told)

    def problem(self, kind: str, text: str) -> None:
        """Count a request that failed, or an answer that is wrong."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.told) < TOLD:
            self.told.append(f"{kind}: {' '.join(text.split())[:300]}")


@dataclass(frozen=True)
class Known:
    """The model's name, the requests, and what each version must answer: `answers[version % len(answers)]`."""

    model: str
    cases: list[Case]
    answers: list[list[Arrays]]

    def of(self, version: int, case: int) -> Arrays:
        return self.answers[version % len(self.answers)][case]


class Client:
    """A client that asks, checks and asks again, until it is stopped."""

    def __init__(self, known: Known, timeline: Timeline, seed: int):
        self.known, self.timeline, self.random = known, timeline, random.Random(seed)
        self.tally = Tally()

    def work(self, stopped: threading.Event) -> None:
        while not stopped.is_set():
            if self.random.random() < BAD_SHARE:
                self.ask_badly()
            else:
                self.ask(self.random.randrange(len(self.known.cases)))

    def allowed(self, begin: float) -> set[int]:
        """Return the versions that may have answered a request sent at `begin` and answered now."""
        end = time.monotonic()
        self.tally.slowest = max(self.tally.slowest, end - begin)
        return self.timeline.allowed(begin, end)


class GrpcClient(Client):
    """By gRPC, where the answer names its version."""

    def __init__(self, server: str, known: Known, timeline: Timeline, seed: int):
        super().__init__(known, timeline, seed)
        channel = grpc.insecure_channel(server, [("grpc.use_local_subchannel_pool", 1),
                                                 ("grpc.max_receive_message_length", -1)])
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.requests = [case.message(known.model) for case in known.cases]
        self.bad = bad_messages(known)

    def ask(self, case: int) -> None:
        begin = time.monotonic()
        try:
            answer = self.stub.Predict(self.requests[case], timeout=TIMEOUT)
        except grpc.RpcError as error:
            self.tally.problem("failed", f"gRPC {self.known.cases[case].signature}: {error.code()} {error.details()}")
            return
        allowed = self.allowed(begin)
        version, signature = answer.model_spec.version.value, answer.model_spec.signature_name
        found = {name: tf.make_ndarray(values) for name, values in answer.outputs.items()}
        if version not in allowed or signature != self.known.cases[case].signature:
            self.tally.problem("wrong", f"version {version} of {signature}, not one of {sorted(allowed)}")
        elif not equal(found, self.known.of(version, case)):
            self.tally.problem("wrong", f"gRPC {signature} of version {version}")
        else:
            self.tally.good["gRPC " + signature] += 1

    def ask_badly(self) -> None:
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
            # A queue of batches may refuse before the client has noticed that its time is over.
            if error.code() is code or code in late and error.code() in late:
                self.tally.refused[f"gRPC {name}: {error.code().name}"] += 1
            else:
                self.tally.problem("failed", f"gRPC {name}: {error.code()} in place of {code}: {error.details()}")
        else:
            # One that is answered sooner than it is given up is no failure.
            if code is not grpc.StatusCode.CANCELLED:
                self.tally.problem("failed", f"gRPC {name}: answered, in place of {code}")


class RestClient(Client):
    """By REST, where the answer must be that of a version that was there at the time."""

    def __init__(self, server: str, known: Known, timeline: Timeline, seed: int):
        super().__init__(known, timeline, seed)
        self.connection = http.client.HTTPConnection(server, timeout=TIMEOUT)
        self.bodies = [json.dumps({"signature_name": case.signature, "inputs": {
            name: _json(values) for name, values in case.inputs.items()}}).encode() for case in known.cases]
        self.bad = bad_bodies(known)

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer; status 0 without one."""
        try:
            self.connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            return 0, repr(error).encode()

    def ask(self, case: int) -> None:
        begin = time.monotonic()
        status, text = self.post(f"/v1/models/{self.known.model}:predict", self.bodies[case])
        signature = self.known.cases[case].signature
        if status != 200:
            self.tally.problem("failed", f"REST {signature}: {status} {text[:200]!r}")
            return
        allowed = self.allowed(begin)
        outputs = json.loads(text)["outputs"]
        if not any(_matches(outputs, self.known.of(version, case)) for version in allowed):
            self.tally.problem("wrong", f"REST {signature}, of none of the versions {sorted(allowed)}")
        else:
            self.tally.good["REST " + signature] += 1

    def ask_badly(self) -> None:
        name, path, body, expected = self.random.choice(self.bad)
        status, text = self.post(path, body)
        if status == expected and b"error" in text:
            self.tally.refused[f"REST {name}: {status}"] += 1
        else:
            self.tally.problem("failed", f"REST {name}: {status} in place of {expected}: {text[:200]!r}")


def _matches(outputs: dict | list, expected: Arrays) -> bool:
    """Return whether JSON outputs hold the expected values; a signature's only output has no name there."""
    outputs = outputs if isinstance(outputs, dict) else {name: outputs for name in expected}
    found = {name: ([base64.b64decode(row["b64"]) for row in values] if name.endswith("_bytes") else values)
             for name, values in outputs.items()}
    return found == {name: values.tolist() for name, values in expected.items()}


def _json(values: np.ndarray) -> list:
    if values.dtype == object:
        return [{"b64": base64.b64encode(value).decode()} for value in values]
    return values.tolist()


def bad_messages(known: Known) -> list[tuple]:
    """Return (name, request, timeout, the status it must be refused with)."""
    code = grpc.StatusCode
    good = known.cases[0].inputs["image_bytes"][0]

    def message(signature: str = "serving_default", model: str = known.model, **inputs) -> predict_pb2.PredictRequest:
        return Case(signature, inputs).message(model)

    text, cut = np.array([b"no picture at all"], object), np.array([good[:len(good) // 2]], object)
    whole, pixels = np.array([good], object), np.zeros((1, 8, 8, 3), np.uint8)
    unknown_version, unknown_output, late = (message(image_bytes=whole) for _ in range(3))
    unknown_version.model_spec.version.value = 999_999
    unknown_output.output_filter.append("nothing")
    found = [("text as a picture", message(image_bytes=text), TIMEOUT, code.INVALID_ARGUMENT),
             ("half a picture", message(image_bytes=cut), TIMEOUT, code.INVALID_ARGUMENT),
             ("unknown model", message(model="nobody", image_bytes=whole), TIMEOUT, code.NOT_FOUND),
             ("unknown version", unknown_version, TIMEOUT, code.NOT_FOUND),
             ("unknown signature", message("nothing", image_bytes=whole), TIMEOUT, code.FAILED_PRECONDITION),
             ("unknown input", message(nothing=whole), TIMEOUT, code.INVALID_ARGUMENT),
             ("unknown output", unknown_output, TIMEOUT, code.INVALID_ARGUMENT),
             ("floats", message("predict_tensor", image=pixels.astype(np.float32)), TIMEOUT, code.INVALID_ARGUMENT),
             ("no time", late, 1e-4, code.DEADLINE_EXCEEDED),
             ("given up", known.cases[1].message(known.model), TIMEOUT, code.CANCELLED)]
    if any("image" in case.inputs for case in known.cases):
        found.append(("wrong rank", message("predict_tensor", image=pixels[0]), TIMEOUT, code.INVALID_ARGUMENT))
    return found


def bad_bodies(known: Known) -> list[tuple]:
    """Return (name, path, body, the status it must be refused with)."""
    path = f"/v1/models/{known.model}:predict"
    text = json.dumps({"instances": [{"b64": base64.b64encode(b"no picture").decode()}]}).encode()
    return [("text as a picture", path, text, 400), ("no JSON", path, b'{"instances": [', 400),
            ("no inputs", path, b"{}", 400), ("unknown model", "/v1/models/nobody:predict", text, 404),
            ("unknown version", f"/v1/models/{known.model}/versions/999999:predict", text, 404),
            ("unknown signature", path, text[:-1] + b', "signature_name": "nothing"}', 400),
            ("strings as pixels", path, b'{"signature_name": "predict_tensor", "instances": ["a"]}', 400),
            ("unknown verb", f"/v1/models/{known.model}:explain", text, 400)]
