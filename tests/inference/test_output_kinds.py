"""The kinds of results of --save: their arrays, required classes and file names."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kseg import cli
from kseg.config import Config
from kseg.datasets import class_names, registry
from kseg.errors import UserError
from kseg.images import image_files
from kseg.inference import output_kinds
from kseg.inference.file_prediction import predict_files
from kseg.inference.output_kinds import KINDS, Prediction
from kseg.predict import main

PALETTE = ((0, 0, 255), (255, 255, 0))
TWO = SimpleNamespace(name="two", classes=("dark", "bright"), palette=PALETTE)
# The ids in Cityscapes' labels.py of the evaluated classes.
LABEL_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}


def silent(text):
    pass


def all_ids(classes):
    ids = np.arange(classes, dtype=np.uint8)[None]
    return Prediction(np.zeros((1, classes, 3), np.uint8), ids)


def files(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_cityscapes_label_ids():
    values = KINDS["cityscapes-labelids"].array(all_ids(19), PALETTE)
    assert values.dtype == np.uint8
    assert dict(zip(registry.DATASETS["cityscapes"].classes, values[0].tolist(), strict=True)) == LABEL_IDS


@pytest.mark.parametrize("kind, name", [("cityscapes-labelids", "cityscapes"), ("ade20k", "ade20k")])
def test_values_for_test_servers_map_back_to_class_ids(kind, name):
    """The table for the dataset's label files must map the written values to the predicted ids."""
    dataset = registry.DATASETS[name]
    prediction = all_ids(len(dataset.classes))
    values = KINDS[kind].array(prediction, dataset.palette)
    np.testing.assert_array_equal(np.array(dataset.label_table)[values], prediction.ids)


def test_ade20k_values_start_at_one():
    values = KINDS["ade20k"].array(all_ids(150), PALETTE)
    assert values.dtype == np.uint8 and values[0].tolist() == list(range(1, 151))


def test_scores_are_half_precision_probabilities(tmp_path):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(2), (3, 4)).astype(np.float32)
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")

    def predict_probabilities(image):
        return probabilities.argmax(axis=2).astype(np.uint8), probabilities

    def must_not_run(image):
        raise AssertionError("predicted twice")

    failures = predict_files(
        must_not_run, [tmp_path / "a.png"], tmp_path / "out", TWO, silent, ("scores", "ids"), predict_probabilities
    )
    assert failures == []
    assert files(tmp_path / "out") == ["ids/a.png", "legend.png", "scores/a.npy"]
    scores = np.load(tmp_path / "out/scores/a.npy")
    assert scores.dtype == np.float16 and scores.shape == (3, 4, 2)
    # Half precision has 11 significant bits.
    np.testing.assert_allclose(scores, probabilities, rtol=2**-11, atol=1e-7)
    with Image.open(tmp_path / "out/ids/a.png") as ids:
        np.testing.assert_array_equal(ids, scores.argmax(axis=2))


def test_only_scores_need_a_probability_predictor(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    ids = np.ones((3, 4), np.uint8)
    for kind in ("ids", "overlay"):
        predict_files(lambda image: ids, [tmp_path / "a.png"], tmp_path / kind, TWO, silent, (kind,))
        assert files(tmp_path / kind) == sorted([f"{kind}/a.png", "legend.png"])


def test_kinds_may_be_separated_by_commas_or_spaces():
    for values in (["ids", "overlay"], ["overlay,ids"]):
        assert output_kinds.parse_kinds(values) == ("ids", "overlay")
    assert output_kinds.parse_kinds(["scores, ids,", "ids"]) == ("ids", "scores")
    with pytest.raises(UserError, match="'score'. Did you mean scores"):
        output_kinds.parse_kinds(["ids,score"])
    with pytest.raises(UserError, match="choices: ids, overlay, scores, cityscapes-labelids, ade20k"):
        output_kinds.parse_kinds([","])


def test_models_of_other_classes_are_rejected(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")

    def must_not_run(image):
        raise AssertionError("predicted in spite of the error")

    for kind in ("cityscapes-labelids", "ade20k"):
        with pytest.raises(UserError, match=rf"--save {kind} .* class 0 must be '(road|wall)', not 'dark'"):
            predict_files(must_not_run, [tmp_path / "a.png"], tmp_path / "out", TWO, silent, ("ids", kind))
    assert files(tmp_path) == ["a.png"]
    # Another dataset of the same classes is accepted, another order of the classes is not.
    classes = tuple(class_names.CITYSCAPES)
    custom = SimpleNamespace(name="folder", classes=classes)
    output_kinds.require_classes(["ids", "scores", "cityscapes-labelids"], custom)
    for wrong, message in (
        (classes[1:] + classes[:1], "class 0 must be 'road', not 'sidewalk'"),
        ((*classes, "more"), "class 19 must be 'none', not 'more'"),
        (classes[:-1], "class 18 must be 'bicycle', not 'none'"),
    ):
        with pytest.raises(UserError, match=message):
            output_kinds.require_classes(["cityscapes-labelids"], SimpleNamespace(name="folder", classes=wrong))


def test_results_have_the_names_that_the_test_server_needs(tmp_path):
    cityscapes = registry.DATASETS["cityscapes"]
    names = ["berlin/berlin_000000_000019_leftImg8bit", "bonn/bonn_000001_000019_leftImg8bit"]
    for name in names:
        (tmp_path / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / "test" / f"{name}.png")
    ids = np.full((3, 4), 18, np.uint8)
    lines = []
    predict_files(
        lambda image: ids, [tmp_path / "test"], tmp_path / "out", cityscapes, lines.append, ("cityscapes-labelids",)
    )
    assert not any(line.startswith("note: ") for line in lines)
    for name in names:
        with Image.open(tmp_path / f"out/cityscapes-labelids/{name}.png") as image:
            assert image.mode == "L" and (np.array(image) == 33).all()
    Image.new("RGB", (4, 3)).save(tmp_path / "test/street.png")
    predict_files(
        lambda image: ids, [tmp_path / "test"], tmp_path / "out", cityscapes, lines.append, ("cityscapes-labelids",)
    )
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == 1 and "1 of 3" in notes[0] and notes[0].endswith("cityscapes-labelids/street.png")


def test_names_with_equal_starts_are_ambiguous():
    names = [Path("a/ulm_000000_000019.png"), Path("b/ulm_000000_000019_x.png"), Path("ulm_000001_000019.png")]
    assert output_kinds.ambiguous_names(names) == ["a/ulm_000000_000019.png", "b/ulm_000000_000019_x.png"]


def test_command_line(tmp_path, monkeypatch):
    from kseg.inference import prediction, segmenter

    monkeypatch.setattr(cli, "load_model", lambda arguments: ("model", Config(), TWO))
    monkeypatch.setattr(prediction, "predictor", lambda model, config: lambda image: np.ones(image.shape[:2], np.uint8))
    monkeypatch.setattr(
        segmenter,
        "probability_predictor",
        lambda model, config: (
            lambda image: (np.zeros(image.shape[:2], np.uint8), np.ones((*image.shape[:2], 2), np.float32))
        ),
    )
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--workdir", str(tmp_path), "--out"]
    assert main([*arguments, str(tmp_path / "one"), "--save", "ids"]) == 0
    assert files(tmp_path / "one") == ["ids/a.png", "legend.png"]
    assert image_files.read_image(tmp_path / "one/ids/a.png").max() == 1
    assert main([*arguments, str(tmp_path / "two"), "--save", "scores,overlay", "ids"]) == 0
    assert files(tmp_path / "two") == ["ids/a.png", "legend.png", "overlay/a.png", "scores/a.npy"]
    assert image_files.read_image(tmp_path / "two/ids/a.png").max() == 0
    with pytest.raises(UserError, match="--save ade20k"):
        main([*arguments, str(tmp_path / "three"), "--save", "ade20k"])
    with pytest.raises(UserError, match="'colors'"):
        main([*arguments, str(tmp_path / "three"), "--save", "colors"])


def test_help_describes_all_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    described = "".join(capsys.readouterr().out.split())
    for name, kind in KINDS.items():
        assert f"{name}:{kind.description}".replace(" ", "") in described
