"""benchmarks/scaling.py: the cost model's arithmetic, by hand, and what it takes from a model."""


import keras
import pytest

from benchmarks import scaling, scaling_model
from benchmarks.scaling_model import Cluster, Link, Rhythm, Workload
from kseg.models.norms import BatchNormalization


# Hosts of 4 GPUs; 1 s a hop and 100 bytes/s inside, 10 s and 50 bytes/s between.
CLUSTER = Cluster(Link(1.0, 100.0), Link(10.0, 50.0), 4, launch=3.0, input_rate=2.0, storage=40.0)
WORK = Workload(gradients=800, norms=(25, 50), state=600, image=6.0, fixed=9.0)
RHYTHM = Rhythm(checkpoint_every=10, validate_every=20, validation_images=80)


def test_a_ring_sends_each_piece_once_to_add_up_and_once_to_tell():
    # 6 hops of 1 s, and 6 pieces of 200 bytes at 100 bytes/s.
    assert scaling_model.ring(4, 800, CLUSTER.inside) == 6 * 1 + 6 * 2
    assert scaling_model.ring(1, 800, CLUSTER.inside) == 0


def test_hosts_add_up_inside_and_then_among_each_other():
    # Two hosts: 2 hops of 10 s and 2 pieces of 400 bytes at the host's 50 bytes/s.
    assert scaling_model.hierarchical_ring(CLUSTER, 8, 800) == 18 + 2 * 10 + 2 * 8
    assert scaling_model.hierarchical_ring(CLUSTER, 2, 800) == 2 * 1 + 2 * 4


def test_a_tree_has_a_chain_inside_hosts_and_halves_their_number_between():
    # Up and down: 3 hops inside, 2 between four hosts, and all bytes on both ways.
    assert scaling_model.tree(CLUSTER, 16, 800) == 2 * (3 * 1 + 2 * 10 + 8 + 16)
    assert scaling_model.tree(CLUSTER, 2, 800) == 2 * (1 + 8)


def test_an_all_reduce_takes_the_better_way_and_one_gpu_takes_none():
    # 32 hosts, where a ring has 62 hops and a tree 5 each way: small messages go by tree, large ones by ring.
    small, large = 4, 8_000_000
    assert scaling_model.all_reduce(CLUSTER, 128, small) == 3 + scaling_model.tree(CLUSTER, 128, small)
    assert scaling_model.all_reduce(CLUSTER, 128, large) == 3 + scaling_model.hierarchical_ring(CLUSTER, 128, large)
    assert scaling_model.all_reduce(CLUSTER, 1, large) == 0
    with pytest.raises(ValueError, match="6 GPUs do not fill hosts of 4"):
        scaling_model.all_reduce(CLUSTER, 6, 1)


def test_a_step_is_the_sum_of_its_parts():
    found = scaling_model.step(WORK, CLUSTER, RHYTHM, gpus=2, share=2)
    # Two GPUs: a launch of 3 s, two hops of 1 s, and the size once at 100 bytes/s.
    assert found.compute == 9 + 2 * 6
    assert found.norms == pytest.approx((5 + 16 * 0.25) + (5 + 16 * 0.5) + (5 + 8 * 0.25) + (5 + 8 * 0.5))
    assert found.gradients == 5 + 8
    assert found.other == pytest.approx(2 * (5 + 0.04))
    assert found.reading == 1
    # 600 bytes written and read at 40 bytes/s in 10 steps; 80 images on 2 GPUs in 20 steps.
    assert found.between == 30 / 10 + 240 / 20
    assert found.seconds == found.compute + found.norms + found.gradients + found.other + found.between
    assert found.limit == "norms"


def test_what_is_read_ahead_counts_only_where_it_is_slower():
    slow = Cluster(CLUSTER.inside, CLUSTER.between, 4, 3.0, input_rate=0.01, storage=40.0)
    found = scaling_model.step(WORK, slow, RHYTHM, gpus=1, share=2)
    assert (found.norms, found.gradients, found.reading, found.limit) == (0, 0, 200, "input")
    assert found.seconds == 200 + 30 / 10 + 480 / 20


def test_gradients_hide_behind_the_backward_pass_as_far_as_it_goes():
    def gradients(overlap, share):
        work = Workload(800, (), 600, image=6.0, fixed=0.0, overlap=overlap)
        return scaling_model.step(work, CLUSTER, RHYTHM, gpus=2, share=share).gradients

    assert gradients(0.0, 1) == 13
    assert gradients(0.5, 1) == pytest.approx(13 - 2)
    assert gradients(1.0, 4) == 0


def test_processes_that_share_cores_take_what_the_cores_have_to_do():
    assert scaling_model.shared_compute(wall=2.0, cpu=3.0, processes=3, cores=2) == 4.5
    # A part of the step that only one core works at is not made shorter by idle ones.
    assert scaling_model.shared_compute(wall=2.0, cpu=3.0, processes=1, cores=2) == 2.0


@pytest.mark.parametrize("constant, slope", [(0.5, 0.002), (0.0, 0.01), (0.25, 0.0)])
def test_a_line_is_fitted(constant, slope):
    sizes = [1, 10, 100, 1000]
    assert scaling_model.fit(sizes, [constant + slope * size for size in sizes]) == pytest.approx((constant, slope), abs=1e-9)


def test_a_fit_is_never_negative():
    constant, slope = scaling_model.fit([1, 10, 100], [0.001, 1, 12])
    assert constant == 0 and slope > 0
    assert scaling_model.fit([1, 10, 100], [3.0, 2.0, 1.0])[1] == 0


def test_facts_of_a_model_are_counted():
    inputs = keras.Input((8, 6, 3))
    outputs = keras.layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)(inputs)
    outputs = BatchNormalization()(outputs)
    network = keras.Model(inputs, keras.layers.Dense(7)(keras.layers.GlobalAveragePooling2D()(outputs)))
    found = scaling.facts(network)
    weights = 3 * 3 * 3 * 5 + 2 * 5 + 5 * 7 + 7
    assert found.gradients == 4 * weights and found.state == 4 * (2 * weights + 2 * 5)
    assert found.norms == (5,) and found.normalised == 4 * 3 * 5
    assert found.multiply_adds == 3 * 3 * 3 * 5 * 4 * 3 + 5 * 7


def test_the_check_takes_messages_from_the_line_between_measured_ones():
    measured = [10, 20, 100], [1.0, 2.0, 4.0]
    assert [scaling_model.between(*measured, size) for size in (4, 10, 15, 20, 60, 100, 140)] == [1, 1, 1.5, 2, 3, 4, 5]
    # The largest are the gradients.
    assert scaling.of_messages([10, 140, 15], measured) == (2.5, 5.0)


def test_seconds_of_ones_own_take_the_place_of_what_is_assumed():
    known = scaling.Facts(gradients=8, state=16, norms=(2,), multiply_adds=5 * 10**12, normalised=1)
    own = scaling.parse(["--predict", "--seconds-per-image", "encnet=0.25", "--teraflops", "100"])
    assert scaling.workload("encnet", known, own).image == 0.25
    # Three passes of two operations for each multiply-add.
    assert scaling.workload("deeplabv3plus", known, own).image == pytest.approx(0.3)


def test_a_table_has_a_line_for_each_number_of_gpus():
    lines = scaling.table(WORK, CLUSTER, {1: 2.0, 2: 2.0}).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["1", "2"]
    assert " 100 % " in lines[0] and lines[1].rstrip().endswith("norms |")
