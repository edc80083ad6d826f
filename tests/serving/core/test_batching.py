"""Session batching: results equal those of single runs; refusals, deadlines, isolation, and closing."""

import re
import time

import grpc
import numpy as np
import pytest

from serving.core import session_model
from serving.errors import ServingError
from tests.helpers import small_servables
from tests.helpers.batched_models import LONG, FakeModel, ask, failure, floats, occupy, strings, until, waiting_tasks

INVALID, EXHAUSTED, UNAVAILABLE = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
)


def test_random_concurrent_requests_get_the_results_of_single_runs(batching, pool):
    scheduler, batched, model = batching(
        max_batch_size=16,
        batch_timeout_micros=500,
        num_batch_threads=3,
        max_enqueued_batches=100,
        allowed=(2, 4, 7, 16),
    )
    random = np.random.default_rng(0)
    inputs = [random.normal(size=(random.integers(1, 17), 3)).astype(np.float32) for _ in range(400)]
    texts = [strings(*[random.bytes(random.integers(0, 9)) for _ in range(random.integers(1, 17))]) for _ in range(400)]
    numbers = [pool.submit(ask, batched, rows) for rows in inputs]
    words = [pool.submit(batched.run, "text", {"text": rows}, ("length", "turned"), None) for rows in texts]
    for rows, future in zip(inputs, numbers):
        np.testing.assert_array_equal(future.result(), np.stack([2 * row + 1 for row in rows]))
    for rows, future in zip(texts, words):
        assert future.result()["turned"].tolist() == [row[::-1] for row in rows]
        assert future.result()["length"].tolist() == [len(row) for row in rows]
    assert set(model.runs) <= {2, 4, 7, 16}
    assert len(model.runs) < 800
    assert model.max_running <= 3
    sizes = [len(rows) for rows in (*inputs, *texts)]
    assert [sum(numbers) for numbers in zip(*(batch[1:] for batch in scheduler.monitor.batches))] == [
        800,
        sum(sizes),
        sum(model.runs),
    ]


def test_requests_to_an_exported_model_get_the_results_of_single_runs(batching, pool, tmp_path):
    scheduler, _, _ = batching(
        max_batch_size=8, batch_timeout_micros=1000, allowed=(1, 2, 4, 8), max_enqueued_batches=100
    )
    session = session_model.load_session_model(
        small_servables.segmentation(tmp_path, 1), ("serve",), session_model.Threads()
    )
    batched = scheduler.wrap("segmentation", session)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (random.integers(1, 5), 5, 7, 3), np.uint8) for _ in range(60)]
    futures = [
        pool.submit(batched.run, "predict_scores", {"image": image}, ("class_map", "confidence"), None)
        for image in images
    ]
    for image, future in zip(images, futures):
        np.testing.assert_array_equal(future.result()["class_map"], small_servables.ids_of(image))
        for row, confidence in zip(image, future.result()["confidence"]):
            alone = session.run("predict_scores", {"image": row[None]}, ("confidence",), None)["confidence"][0]
            np.testing.assert_array_equal(confidence, alone)
    batched.close()


def test_a_full_batch_is_run_at_once(batching, pool):
    _, batched, model = batching(max_batch_size=3, batch_timeout_micros=LONG)
    first = pool.submit(ask, batched, floats(1))
    until(lambda: waiting_tasks(batched) == 1)
    second = pool.submit(ask, batched, floats(2, 3), "again")
    assert first.result(60).tolist() == [3] and second.result(60).tolist() == [5, 7]
    assert model.runs == [3]


def test_a_request_that_does_not_fit_closes_the_batch(batching, pool):
    _, batched, model = batching(max_batch_size=3, batch_timeout_micros=LONG)
    first = pool.submit(ask, batched, floats(1, 2))
    until(lambda: waiting_tasks(batched) == 1)
    second = pool.submit(ask, batched, floats(3, 4, 5))
    assert first.result(60).tolist() == [3, 5] and second.result(60).tolist() == [7, 9, 11]
    assert model.runs == [2, 3]


def test_a_single_request_is_run_after_the_timeout(batching):
    _, batched, model = batching(max_batch_size=1000, batch_timeout_micros=2000)
    for number in range(20):
        assert ask(batched, floats(number)).tolist() == [2 * number + 1]
    assert model.runs == [1] * 20


def test_different_signatures_outputs_dtypes_and_models_do_not_share_a_run(batching, pool):
    scheduler, batched, model = batching(max_batch_size=2, batch_timeout_micros=LONG)
    other_model = FakeModel()
    other = scheduler.wrap("half", other_model)
    futures = [
        pool.submit(ask, batched, floats(1)),
        pool.submit(ask, other, floats(1)),
        pool.submit(ask, batched, np.array([1.0])),
        pool.submit(ask, batched, strings(b"ab"), "text"),
        pool.submit(batched.run, "text", {"text": strings(b"ab")}, ("length",), None),
    ]
    until(lambda: waiting_tasks(batched) + waiting_tasks(other) == 5)
    assert not model.runs and not other_model.runs
    for wrapped in (batched, other):
        wrapped.close()
    assert [future.exception(60) is None for future in futures] == [True, True, False, True, True]
    assert "to be float but float64" in failure(futures[2], INVALID)
    assert model.runs == [1] * 4 and other_model.runs == [1]


def test_too_large_requests_and_full_queues_are_refused(batching, pool):
    _, batched, model = batching(max_batch_size=2, max_enqueued_batches=2, num_batch_threads=1)
    with pytest.raises(ServingError, match="^Task size 3 is larger than maximum input batch size 2$") as caught:
        ask(batched, floats(1, 2, 3))
    assert caught.value.code is INVALID
    blocker = occupy(pool, batched, model)
    futures = []
    for number in range(4):
        futures.append(pool.submit(ask, batched, floats(number)))
        until(lambda: waiting_tasks(batched) == len(futures))
    with pytest.raises(
        ServingError,
        match=(
            "^The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
            "max_enqueued_batches is 2$"
        ),
    ) as caught:
        ask(batched, floats(1))
    assert caught.value.code is UNAVAILABLE
    # The limit applies to every queue separately.
    other = pool.submit(ask, batched, strings(b"ab"), "text")
    model.gate.set()
    assert [future.result(60).tolist() for future in (blocker, *futures)] == [[-1], [1], [3], [5], [7]]
    assert other.result(60).tolist() == [b"ba"]


def test_large_requests_are_split(batching, pool):
    _, batched, model = batching(
        max_batch_size=100,
        max_execution_batch_size=4,
        enable_large_batch_splitting=True,
        num_batch_threads=2,
        allowed=(1, 4),
        batch_timeout_micros=1000,
    )
    futures = [pool.submit(ask, batched, np.arange(size, dtype=np.float32)) for size in (1, 10, 2, 17, 4)]
    for size, future in zip((1, 10, 2, 17, 4), futures):
        assert future.result(60).tolist() == [2 * number + 1 for number in range(size)]
    assert set(model.runs) <= {1, 4} and sum(model.runs) >= 34


def test_splitting_fills_the_open_batch_first_and_respects_the_capacity(batching, pool):
    _, batched, model = batching(
        max_batch_size=12,
        max_execution_batch_size=4,
        enable_large_batch_splitting=True,
        num_batch_threads=1,
        max_enqueued_batches=3,
    )
    blocker = occupy(pool, batched, model)
    first = pool.submit(ask, batched, floats(0, 1, 2))
    until(lambda: waiting_tasks(batched) == 1)
    second = pool.submit(ask, batched, np.arange(7, dtype=np.float32))
    until(lambda: waiting_tasks(batched) == 4)
    with pytest.raises(
        ServingError,
        match=re.escape(
            "is full; task size is 3 but scheduling capacity is only 2 (num_enqueued_batches=3, "
            "max_enqueued_batches=3, open_batch_size=2, max_execution_batch_size=4)"
        ),
    ) as caught:
        ask(batched, floats(1, 2, 3))
    assert caught.value.code is UNAVAILABLE
    with pytest.raises(ServingError, match="Task size 13 is larger than maximum input batch size 12"):
        ask(batched, np.zeros(13, np.float32))
    model.gate.set()
    assert blocker.result(60).tolist() == [-1] and first.result(60).tolist() == [1, 3, 5]
    assert second.result(60).tolist() == [1, 3, 5, 7, 9, 11, 13]
    assert model.runs == [1, 4, 4, 2]


def test_isolation_fails_only_the_bad_request(batching, pool):
    _, batched, model = batching(max_batch_size=8, num_batch_threads=1, allowed=(1, 4, 8))
    blocker = occupy(pool, batched, model)
    words = [strings(b"ab"), strings(b"cd", b"bad"), strings(b"ef", b"gh")]
    futures = [pool.submit(ask, batched, rows, "text") for rows in words]
    until(lambda: waiting_tasks(batched) == 3)
    model.gate.set()
    blocker.result(60)
    assert futures[0].result(60).tolist() == [b"ba"] and futures[2].result(60).tolist() == [b"fe", b"hg"]
    assert failure(futures[1], INVALID) == "Unknown image file format."
    assert model.runs[:2] == [1, 8] and sorted(model.runs[2:]) == [1, 4, 4]


@pytest.mark.parametrize(
    "isolate, word, code, message",
    [(False, b"bad", INVALID, "Unknown image file format."), (True, b"broken", grpc.StatusCode.INTERNAL, "broken")],
)
def test_a_failure_of_the_whole_batch_reaches_all_its_requests(batching, pool, isolate, word, code, message):
    _, batched, model = batching(isolate, max_batch_size=2, batch_timeout_micros=LONG)
    futures = [pool.submit(ask, batched, rows, "text") for rows in (strings(b"ab"), strings(word))]
    assert [failure(future, code) for future in futures] == [message] * 2
    assert model.runs == [2]


def test_a_bug_reaches_the_callers_and_does_not_end_the_thread(batching, pool):
    _, batched, _ = batching(max_batch_size=2, batch_timeout_micros=LONG, num_batch_threads=1)
    futures = [pool.submit(ask, batched, rows, "text") for rows in (strings(b"ab"), strings(b"bug"))]
    assert [type(future.exception(60)) for future in futures] == [ZeroDivisionError] * 2
    assert ask(batched, strings(b"ab", b"cd"), "text").tolist() == [b"ba", b"dc"]


def test_a_run_uses_the_latest_deadline_of_its_batch(batching, pool):
    _, batched, model = batching(max_batch_size=2, batch_timeout_micros=LONG)
    now = time.monotonic()
    for deadlines, expected in (((now + 700, now + 900), now + 900), ((now + 700, None), None)):
        futures = [pool.submit(ask, batched, floats(1), deadline=deadline) for deadline in deadlines]
        assert [future.result(60).tolist() for future in futures] == [[3], [3]]
        assert model.deadlines[-1] == expected


def test_a_request_leaves_the_queue_at_its_deadline(batching, pool):
    _, batched, model = batching(max_batch_size=4, num_batch_threads=1, max_enqueued_batches=1)
    blocker = occupy(pool, batched, model)
    kept = pool.submit(ask, batched, floats(1), deadline=time.monotonic() + 900)
    until(lambda: waiting_tasks(batched) == 1)
    expiring = pool.submit(ask, batched, floats(2, 3, 4), deadline=time.monotonic() + 0.05)
    # The request gets its error although no thread is free.
    assert failure(expiring, EXHAUSTED) == "Run() timeout exceeded while waiting in batching queue"
    assert waiting_tasks(batched) == 1
    # Another request takes the freed space in the queue.
    later = pool.submit(ask, batched, floats(5, 6, 7))
    until(lambda: waiting_tasks(batched) == 2)
    model.gate.set()
    assert blocker.result(60).tolist() == [-1] and kept.result(60).tolist() == [3]
    assert later.result(60).tolist() == [11, 13, 15]
    assert model.runs == [1, 4]


def test_an_expired_full_batch_is_removed(batching, pool):
    _, batched, model = batching(max_batch_size=2, num_batch_threads=1)
    blocker = occupy(pool, batched, model)
    expiring = [pool.submit(ask, batched, floats(1, 2), deadline=time.monotonic() + 0.2) for _ in range(3)]
    last = pool.submit(ask, batched, floats(3))
    assert {failure(future, EXHAUSTED) for future in expiring} == {
        "Run() timeout exceeded while waiting in batching queue"
    }
    model.gate.set()
    assert blocker.result(60).tolist() == [-1] and last.result(60).tolist() == [7]
    assert model.runs == [1, 1]


def test_the_queues_of_models_take_turns(batching, pool):
    scheduler, batched, model = batching(max_batch_size=1, num_batch_threads=1)
    other = scheduler.wrap("other", model)
    blocker = occupy(pool, batched, model)
    busy = [pool.submit(ask, batched, floats(1)) for _ in range(5)]
    until(lambda: waiting_tasks(batched) == 5)
    one = pool.submit(ask, other, floats(2))
    until(lambda: waiting_tasks(other) == 1)
    model.gate.set()
    assert [future.result(60).tolist() for future in (blocker, one, *busy)] == [[-1], [5]] + [[3]] * 5
    rows = [float(inputs["x"][0]) for inputs in model.seen]
    assert rows.index(2.0) <= 2


def test_a_batch_is_run_even_if_the_thread_that_waited_for_it_is_busy(batching, pool):
    _, batched, model = batching(max_batch_size=4, num_batch_threads=2, batch_timeout_micros=20_000)
    partial = pool.submit(ask, batched, floats(1))
    until(lambda: waiting_tasks(batched) == 1)
    model.gate.clear()
    full = pool.submit(ask, batched, strings(b"a", b"b", b"c", b"d"), "text")
    # Both batches run at the same time.
    assert model.started.acquire(timeout=60) and model.started.acquire(timeout=60)
    model.gate.set()
    assert partial.result(60).tolist() == [3] and full.result(60).tolist() == [b"a", b"b", b"c", b"d"]


def test_closing_a_model_first_runs_the_waiting_requests(batching, pool):
    scheduler, batched, model = batching(max_batch_size=4, num_batch_threads=1, batch_timeout_micros=LONG)
    futures = [pool.submit(ask, batched, floats(1, 2, 3, 4))]
    futures[0].result(60)
    futures += [pool.submit(ask, batched, floats(number)) for number in range(3)]
    until(lambda: waiting_tasks(batched) == 3)
    model.gate.clear()
    closing = pool.submit(batched.close)
    assert model.started.acquire(timeout=60) and model.started.acquire(timeout=60)
    assert not model.closed and not closing.done()
    with pytest.raises(ServingError, match="model half is being closed") as caught:
        ask(batched, floats(1))
    assert caught.value.code is UNAVAILABLE
    model.gate.set()
    closing.result(60)
    assert model.closed and not scheduler.queues
    assert [future.result(60).tolist() for future in futures[1:]] == [[1], [3], [5]]


def test_stopping_first_runs_the_waiting_requests(batching, pool):
    scheduler, batched, model = batching(max_batch_size=4, num_batch_threads=2, batch_timeout_micros=LONG)
    future = pool.submit(ask, batched, floats(1))
    until(lambda: waiting_tasks(batched) == 1)
    scheduler.stop()
    assert future.result(60).tolist() == [3]
    assert not any(thread.is_alive() for thread in scheduler.threads)
    with pytest.raises(ServingError, match="is being closed"):
        ask(batched, floats(1))
    batched.close()
    assert model.closed
