"""The arithmetic of the cost model in benchmarks/scaling.py matches calculations by hand."""

import dataclasses

import keras
import pytest

from benchmarks import scaling
from benchmarks.scaling import Cluster, Workload
from kseg.models.norms import BatchNormalization

# Hosts have 4 GPUs. A hop takes 1 s at 100 bytes/s inside a host, and 10 s at 50 bytes/s between hosts.
CLUSTER = Cluster(
    fixed_ms=9000.0,
    inside_us=1e6,
    inside_gbytes=1e-7,
    between_us=1e7,
    between_gbytes=5e-8,
    launch_us=3e6,
    cores=1.0,
    images_per_core=2.0,
    storage_gbytes=4e-8,
    gpus_per_host=4,
)
WORK = Workload(gradients=800, state=600, norms=(25, 50), image=6.0)


def test_an_all_reduce_uses_the_faster_of_rings_and_tree():
    # A ring of 4 GPUs has 6 hops with pieces of 200 bytes.
    assert scaling.ring(4, 800, CLUSTER.inside_us, CLUSTER.inside_gbytes) == pytest.approx(6 * 1 + 6 * 2)
    # A tree has 3 hops inside a host and 2 between 4 hosts, in both directions, with all bytes on every link.
    assert scaling.tree(CLUSTER, 4, 4, 800) == pytest.approx(2 * (3 * 1 + 2 * 10 + 8 + 16))
    # 32 hosts need 62 hops in a ring but 5 in a tree, so small messages use the tree and large ones the rings.
    small, large = 4, 8_000_000
    assert scaling.all_reduce(CLUSTER, 128, small) == pytest.approx(3 + scaling.tree(CLUSTER, 4, 32, small))
    rings = 6 * (1 + large / 4 / 100) + 62 * (10 + large / 32 / 50)
    assert scaling.all_reduce(CLUSTER, 128, large) == pytest.approx(3 + rings)
    assert scaling.all_reduce(CLUSTER, 1, large) == 0
    with pytest.raises(ValueError, match="6 GPUs"):
        scaling.all_reduce(CLUSTER, 6, 1)


def test_a_step_is_the_sum_of_its_parts():
    parts = scaling.step(WORK, CLUSTER, gpus=2, images=2)
    assert parts.compute == pytest.approx(9 + 2 * 6)
    # Two GPUs: a launch of 3 s, two hops of 1 s, and the size once at 100 bytes/s.
    assert parts.norms == pytest.approx((5 + 16 * 0.25) + (5 + 16 * 0.5) + (5 + 8 * 0.25) + (5 + 8 * 0.5))
    assert parts.gradients == pytest.approx(5 + 8)
    assert parts.other == pytest.approx(2 * (5 + 0.04))
    assert parts.reading == 1
    # A checkpoint of 600 bytes is written and read at 40 bytes/s.
    assert parts.between == pytest.approx(30 / 1000 + 500 * 4 / 3 / 2 * 6 / 4000)
    assert parts.seconds == pytest.approx(parts.compute + parts.norms + parts.gradients + parts.other + parts.between)
    assert parts.largest == "norms"


def test_reading_counts_only_if_it_is_slower():
    slow = dataclasses.replace(CLUSTER, images_per_core=0.01)
    parts = scaling.step(WORK, slow, gpus=1, images=2)
    assert (parts.norms, parts.gradients, parts.reading, parts.largest) == (0, 0, 200, "input")
    assert parts.seconds == 200 + parts.between


def test_efficiency_is_the_speed_per_gpu_relative_to_the_first_row():
    row = scaling.table(WORK, CLUSTER, {1: 2.0, 2: 2.0}).splitlines()[-1]
    one, two = (scaling.step(WORK, CLUSTER, gpus, 2).seconds for gpus in (1, 2))
    assert f"| {100 * one / two:.0f} % |" in row


def test_the_workload_of_a_model():
    inputs = keras.Input((8, 6, 3))
    outputs = keras.layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)(inputs)
    outputs = BatchNormalization()(outputs)
    network = keras.Model(inputs, keras.layers.Dense(7)(keras.layers.GlobalAveragePooling2D()(outputs)))
    work, multiply_adds = scaling.workload(network, teraflops=1e-12)
    weights = 3 * 3 * 3 * 5 + 2 * 5 + 5 * 7 + 7
    assert (work.gradients, work.state, work.norms) == (4 * weights, 4 * (2 * weights + 2 * 5), (5,))
    assert multiply_adds == 3 * 3 * 3 * 5 * 4 * 3 + 5 * 7
    # Three passes have two operations per multiply-add.
    assert work.image == 6 * multiply_adds
    assert scaling.workload(network, teraflops=1.0, image=0.25)[0].image == 0.25
