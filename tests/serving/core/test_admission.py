"""How many requests run at once, who is next, and who is refused."""

import threading
import time

import grpc
import pytest

from serving.core.admission import AdmissionControl
from serving.errors import ServingError
from tests.helpers.grpc_requests import until


class Places:
    """Requests of admissions in threads of their own, each of which runs until it is told to leave."""

    def __init__(self, admissions):
        self.admissions, self.order, self.errors = admissions, [], {}

    def come(self, name, size=1, seconds=None):
        leave = threading.Event()

        def request():
            try:
                with self.admissions.admit(size, None if seconds is None else time.monotonic() + seconds):
                    self.order.append(name)
                    leave.wait(20)
            except ServingError as error:
                self.errors[name] = error

        thread = threading.Thread(target=request)
        thread.start()
        return thread, leave


def test_places_are_given_in_turn_and_the_rest_refused():
    seen = []
    places = Places(AdmissionControl(2, 2, 100, lambda *state: seen.append(state)))
    requests = {}
    for name, state in (("a", (0, 1, 0)), ("b", (0, 2, 0)), ("c", (1, 2, 10)), ("d", (2, 2, 20))):
        requests[name] = places.come(name, 10)
        until(lambda: seen and seen[-1] == state)
    places.come("e", 1)[0].join()
    assert places.errors["e"].code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert places.errors["e"].message == "The server is busy: 2 requests run and 2 wait"
    assert places.order == ["a", "b"]
    for name, next_one in (("b", "c"), ("a", "d")):
        requests[name][1].set()
        until(lambda: next_one in places.order)
    for thread, leave in requests.values():
        leave.set()
        thread.join()
    assert places.order == ["a", "b", "c", "d"] and seen[-1] == (0, 0, 0)


def test_waiting_requests_hold_so_many_bytes_at_most():
    places = Places(AdmissionControl(1, 10, 100))
    first = places.come("running", 10 ** 9)
    until(lambda: places.order == ["running"])
    second = places.come("waiting", 60)
    until(lambda: places.admissions._queue)
    places.come("too much", 41)[0].join()
    assert places.errors["too much"].code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "hold 101 bytes, above 100" in places.errors["too much"].message
    third = places.come("fits", 40)
    for thread, leave in (first, second, third):
        leave.set()
    for thread, _ in (first, second, third):
        thread.join()
    assert set(places.order) == {"running", "waiting", "fits"}


def test_a_deadline_ends_the_waiting_and_gives_its_place_in_the_queue_back():
    places = Places(AdmissionControl(1, 1, 100))
    thread, leave = places.come("running")
    until(lambda: places.order == ["running"])
    places.come("late", seconds=0.05)[0].join()
    assert places.errors["late"].code == grpc.StatusCode.DEADLINE_EXCEEDED
    other = places.come("patient", seconds=1e18)
    until(lambda: places.admissions._queue)
    for thread, leave in ((thread, leave), other):
        leave.set()
        thread.join()
    assert places.order == ["running", "patient"]


def test_a_request_that_fails_leaves_its_place():
    admissions = AdmissionControl(1, 0, 0)
    for _ in range(3):
        with pytest.raises(ValueError), admissions.admit(5, None):
            raise ValueError
    with admissions.admit(5, None):
        pass
