"""Test the sums of the evaluation, the resolver of the previous model, and the pusher."""

import errno
import itertools
import json

import numpy as np
import pytest
from tfx.components.pusher import executor as tfx_pusher
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from kseg.errors import DataError, UserError
from kseg.evaluation.counter import Counts
from pipeline.components import pusher
from pipeline.jobs import counting
from pipeline.metadata import resolvers
from tests.helpers.stored_artifacts import artifact


def part(names, seed):
    generator = np.random.default_rng(seed)
    return Counts(
        generator.integers(0, 2**40, (6, 3, 3)),
        tuple(names),
        *(generator.integers(0, 9, (len(names), 3)) for _ in range(3)),
    )


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_parts_add_up_in_any_order(order, tmp_path):
    parts = [(0, part("ab", 0)), (2, part("c", 1)), (3, part("de", 2))]
    add = counting.AddCounts()
    first, *rest = (add.add_input(add.create_accumulator(), parts[index]) for index in order)
    total = add.extract_output(add.merge_accumulators([first, add.merge_accumulators(rest)]))
    np.testing.assert_array_equal(total.bands, sum(counts.bands for _, counts in parts))
    assert total.bands.dtype == np.int64 and total.names == tuple("abcde")
    np.testing.assert_array_equal(total.hits, np.concatenate([counts.hits for _, counts in parts]))
    counting.write_counts(total, str(tmp_path / "counts.npz"))
    stored = counting.read_counts(str(tmp_path / "counts.npz"), tuple("abcde"))
    np.testing.assert_array_equal(stored.bands, total.bands)
    with pytest.raises(DataError, match="^5 images .* 6 images"):
        counting.read_counts(str(tmp_path / "counts.npz"), tuple("abcdef"))


def test_a_part_delivered_twice_counts_once():
    add, counts = counting.AddCounts(), part("ab", 0)
    one = add.add_input(add.create_accumulator(), (4, counts))
    total = add.extract_output(add.merge_accumulators([one, add.add_input(one, (4, counts))]))
    np.testing.assert_array_equal(total.bands, counts.bands)
    assert total.names == counts.names


def test_the_error_of_a_part_is_raised(tmp_path):
    add = counting.AddCounts()
    accumulator = add.add_input(add.add_input(add.create_accumulator(), (0, part("ab", 0))), (2, "c.png is damaged"))
    counting.write_counts(add.extract_output(accumulator), str(tmp_path / "counts.npz"))
    with pytest.raises(DataError, match="c.png is damaged"):
        counting.read_counts(str(tmp_path / "counts.npz"), ("a", "b", "c"))


def test_last_blessed_model_before_a_candidate(tmp_path):
    models = [artifact(standard_artifacts.Model, tmp_path / f"model{number}", number) for number in (1, 2, 3)]
    # Chronologically, 1 and 2 are blessed, 3 is refused, and 1 is blessed again.
    blessings = [
        artifact(
            standard_artifacts.ModelBlessing,
            tmp_path / f"blessing{number}",
            number,
            blessed=blessed,
            current_model_id=model,
        )
        for number, model, blessed in ((11, 1, 1), (12, 2, 1), (13, 3, 0), (14, 1, 1))
    ]

    def resolve(candidate, blessings):
        resolved = resolvers.LastBlessedBefore().resolve_artifacts(
            None, {"model": models, "model_blessing": blessings, "candidate": [models[candidate - 1]]}
        )
        return [item.id for item in (*resolved["model"], *resolved["model_blessing"])]

    assert resolve(3, blessings) == [1, 14]
    assert resolve(3, blessings[:3]) == [2, 12]
    # The candidate is not its own predecessor.
    assert resolve(1, blessings) == [2, 12]
    assert resolve(1, blessings[:1]) == []


def push(tmp_path, blessed=1, infra=1, container=1, weights=""):
    model = artifact(standard_artifacts.Model, tmp_path / "model", 1)
    for path in ("Format-Serving/saved_model.pb", "Format-Serving/variables/variables.index"):
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_text(path + weights)
    evaluation = artifact(standard_artifacts.ModelEvaluation, tmp_path / "evaluation", 3)
    provenance = dict.fromkeys(("kseg", "git", "tensorflow", "keras", "python", "weights_sha256", "date"), "x")
    (tmp_path / "evaluation" / "metrics.json").write_text(
        json.dumps(
            {
                "config": {
                    "name": "a",
                    "model": {"head": "fcn", "backbone": "resnet18"},
                    "train": {"steps": 1, "global_batch": 2},
                },
                "provenance": provenance,
                "images": 4,
                "split": "val",
                "mIoU": 0.5,
                "aAcc": None,
                "mAcc": 0.25,
                "classes": {"sky": {"iou": 0.5, "accuracy": None, "pixels": 12345}},
            }
        )
    )
    inputs = {
        "model": [model],
        "evaluation": [evaluation],
        "examples": [
            artifact(
                standard_artifacts.Examples,
                tmp_path / "examples",
                2,
                images=5,
                unreadable=1,
                fingerprint="f00d",
                data=json.dumps({"name": "folder", "directory": "/data"}),
            )
        ],
        "model_blessing": [artifact(standard_artifacts.ModelBlessing, tmp_path / "blessing", 4, blessed=blessed)],
        "infra_blessing": [artifact(standard_artifacts.InfraBlessing, tmp_path / "infra", 5, blessed=infra)],
        "container_blessing": [artifact(standard_artifacts.InfraBlessing, tmp_path / "other", 6, blessed=container)],
    }
    pushed = artifact(standard_artifacts.PushedModel, tmp_path / "pushed", 7)
    destination = pusher_pb2.PushDestination(
        filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(tmp_path / "serving"))
    )
    pusher.Executor().Do(
        inputs, {"pushed_model": [pushed]}, {"push_destination": proto_utils.proto_to_json(destination)}
    )
    return pushed


def test_a_version_is_pushed_atomically(tmp_path):
    (tmp_path / "serving" / pusher.STAGING / "7").mkdir(parents=True)
    pushed = push(tmp_path)
    (version,) = (tmp_path / "serving").iterdir()
    assert pushed.get_string_custom_property("pushed_destination") == str(version) and version.name.isdigit()
    assert (version / "variables" / "variables.index").read_text() == "Format-Serving/variables/variables.index"
    card = (version / "model_card.md").read_text()
    assert "| sky | 50.00 | - | 12,345 |" in card and "folder in `/data`: 5 examples, 1 " in card


def test_the_newest_version_is_not_pushed_again(tmp_path, monkeypatch):
    seconds = iter([100, 200, 300, 400])
    monkeypatch.setattr(tfx_pusher.time, "time", lambda: next(seconds))
    served = tmp_path / "serving"

    def push_version(weights):
        pushed = push(tmp_path, weights=weights)
        version = served / pushed.get_string_custom_property("pushed_version")
        assert pushed.get_string_custom_property("pushed_destination") == str(version)
        assert version.joinpath("model_card.md").read_text().startswith(f"# a, version {version.name}\n")
        return version.name, pushed.get_int_custom_property("adopted")

    assert push_version("a") == ("100", 0)
    (served / "100" / "model_card.md").write_text("")
    assert push_version("a") == ("100", 1)
    assert push_version("b") == ("300", 0)
    # Version 100 is older than 300, so a server would keep serving 300.
    assert push_version("a") == ("400", 0)
    assert sorted(path.name for path in served.iterdir()) == ["100", "300", "400"]


@pytest.mark.parametrize("missing", ["0/files", "a"])
def test_versions_are_compared_by_their_files(tmp_path, missing):
    for version in ("1", "2"):
        (tmp_path / version / "0").mkdir(parents=True)
        for name in ("0/files", "a", "model_card.md"):
            (tmp_path / version / name).write_text(name)
    (tmp_path / "2" / "model_card.md").unlink()
    assert pusher.same_files(tmp_path / "1", tmp_path / "2") and pusher.newest_version(tmp_path) == tmp_path / "2"
    (tmp_path / "2" / missing).unlink()
    assert not pusher.same_files(tmp_path / "1", tmp_path / "2")
    assert not pusher.same_files(tmp_path / "2", tmp_path / "1")
    (tmp_path / "10").mkdir()
    (tmp_path / ".99").mkdir()
    assert pusher.newest_version(tmp_path) == tmp_path / "10"


@pytest.mark.parametrize("refused", ["blessed", "infra", "container"])
def test_each_blessing_can_refuse(tmp_path, refused):
    pushed = push(tmp_path, **{refused: 0})
    assert pushed.get_int_custom_property("pushed") == 0
    assert not list(tmp_path.glob("serving/*"))


def test_a_full_disk_leaves_no_files(tmp_path, monkeypatch):
    copy_dir = tfx_pusher.io_utils.copy_dir

    def fail_after_copy(source, target, *arguments, **options):
        copy_dir(source, target, *arguments, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tfx_pusher.io_utils, "copy_dir", fail_after_copy)
    with pytest.raises(UserError, match=r"serving: No space left on device"):
        push(tmp_path)
    assert not list((tmp_path / "serving").iterdir())
