"""Admission control: running, waiting and refused requests."""

import threading
import time

import grpc
import pytest

from serving.core.admission import AdmissionControl
from serving.errors import ServingError
from tests.helpers.grpc_requests import until


class Clients:
    """Requests in separate threads; a request runs until its event is set.

    Attributes:
        order: The names of the admitted requests.
        errors: The errors of the refused requests by name.
    """

    def __init__(self, admission):
        self.admission, self.order, self.errors = admission, [], {}

    def send(self, name, size=1, seconds=None):
        finish = threading.Event()

        def request():
            try:
                with self.admission.admit(size, None if seconds is None else time.monotonic() + seconds):
                    self.order.append(name)
                    finish.wait(20)
            except ServingError as error:
                self.errors[name] = error

        thread = threading.Thread(target=request)
        thread.start()
        return thread, finish


def test_slots_are_assigned_in_order_and_excess_requests_refused():
    states = []
    clients = Clients(AdmissionControl(2, 2, 100, lambda *state: states.append(state)))
    requests = {}
    for name, state in (("a", (0, 1, 0)), ("b", (0, 2, 0)), ("c", (1, 2, 10)), ("d", (2, 2, 20))):
        requests[name] = clients.send(name, 10)
        until(lambda: states and states[-1] == state)
    clients.send("e", 1)[0].join()
    assert clients.errors["e"].code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert clients.errors["e"].message == "The server is busy: 2 requests run and 2 wait"
    assert clients.order == ["a", "b"]
    for name, next_one in (("b", "c"), ("a", "d")):
        requests[name][1].set()
        until(lambda: next_one in clients.order)
    for thread, finish in requests.values():
        finish.set()
        thread.join()
    assert clients.order == ["a", "b", "c", "d"] and states[-1] == (0, 0, 0)


def test_the_bytes_of_waiting_requests_are_limited():
    clients = Clients(AdmissionControl(1, 10, 100))
    first = clients.send("running", 10**9)
    until(lambda: clients.order == ["running"])
    second = clients.send("waiting", 60)
    until(lambda: clients.admission._queue)
    clients.send("too much", 41)[0].join()
    assert clients.errors["too much"].code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "hold 101 bytes, above 100" in clients.errors["too much"].message
    third = clients.send("fits", 40)
    for thread, finish in (first, second, third):
        finish.set()
    for thread, _ in (first, second, third):
        thread.join()
    assert set(clients.order) == {"running", "waiting", "fits"}


def test_a_request_leaves_the_queue_at_its_deadline():
    clients = Clients(AdmissionControl(1, 1, 100))
    thread, finish = clients.send("running")
    until(lambda: clients.order == ["running"])
    clients.send("late", seconds=0.05)[0].join()
    assert clients.errors["late"].code == grpc.StatusCode.DEADLINE_EXCEEDED
    other = clients.send("patient", seconds=1e18)
    until(lambda: clients.admission._queue)
    for thread, finish in ((thread, finish), other):
        finish.set()
        thread.join()
    assert clients.order == ["running", "patient"]


def test_a_failed_request_frees_its_slot():
    admission = AdmissionControl(1, 0, 0)
    for _ in range(3):
        with pytest.raises(ValueError), admission.admit(5, None):
            raise ValueError
    with admission.admit(5, None):
        pass
