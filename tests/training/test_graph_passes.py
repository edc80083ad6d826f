"""Check that passes of TensorFlow's graph optimizer are skipped within a context and nowhere else."""

from types import SimpleNamespace

import pytest
import tensorflow as tf

from kseg.training import graph_passes


def settings() -> dict[str, bool]:
    return tf.config.optimizer.get_experimental_options()


@pytest.fixture
def restored():
    before = {name: settings().get(name, True) for name in graph_passes.SKIPPED_PASSES}
    yield
    tf.config.optimizer.set_experimental_options(before)


def test_passes_are_skipped_within_the_context_and_restored_after_an_error(restored):
    tf.config.optimizer.set_experimental_options({"remapping": False})
    with pytest.raises(ZeroDivisionError), graph_passes.skip_passes():
        inside = settings()
        raise ZeroDivisionError
    assert not any(inside[name] for name in graph_passes.SKIPPED_PASSES)
    assert {name: settings()[name] for name in graph_passes.SKIPPED_PASSES} == {
        name: name != "remapping" for name in graph_passes.SKIPPED_PASSES
    }


def test_only_a_single_replica_skips_them():
    assert graph_passes.unneeded(SimpleNamespace(num_replicas_in_sync=1))
    assert not graph_passes.unneeded(SimpleNamespace(num_replicas_in_sync=2))
