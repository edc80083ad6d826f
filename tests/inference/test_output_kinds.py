"""What --save names: the arrays of each kind of result, and for which models and names they are."""

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
# Cityscapes' labels.py: name, id, trainId of what is evaluated.
LABEL_IDS = {"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
             "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26,
             "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}


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
def test_values_read_as_labels_are_the_train_ids(kind, name):
    """What is sent to a test server, read by the table of the data set's own label files."""
    dataset = registry.DATASETS[name]
    prediction = all_ids(len(dataset.classes))
    values = KINDS[kind].array(prediction, dataset.palette)
    np.testing.assert_array_equal(np.array(dataset.label_table)[values], prediction.ids)


def test_ade20k_counts_from_one():
    values = KINDS["ade20k"].array(all_ids(150), PALETTE)
    assert values.dtype == np.uint8 and values[0].tolist() == list(range(1, 151))


def test_scores_are_half_precision_probabilities(tmp_path):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(2), (3, 4)).astype(np.float32)
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")

    def scorer(image):
        return probabilities.argmax(axis=2).astype(np.uint8), probabilities

    def never(image):
        raise AssertionError("looked at twice")

    assert predict_files(never, [tmp_path / "a.png"], tmp_path / "out", TWO, silent, ("scores", "ids"), scorer) == []
    assert files(tmp_path / "out") == ["ids/a.png", "legend.png", "scores/a.npy"]
    scores = np.load(tmp_path / "out/scores/a.npy")
    assert scores.dtype == np.float16 and scores.shape == (3, 4, 2)
    # Half precision has 11 bits.
    np.testing.assert_allclose(scores, probabilities, rtol=2 ** -11, atol=1e-7)
    with Image.open(tmp_path / "out/ids/a.png") as ids:
        np.testing.assert_array_equal(ids, scores.argmax(axis=2))


def test_scores_need_a_scorer_only_where_they_are_asked_for(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    ids = np.ones((3, 4), np.uint8)
    for kind in ("ids", "overlay"):
        predict_files(lambda image: ids, [tmp_path / "a.png"], tmp_path / kind, TWO, silent, (kind,))
        assert files(tmp_path / kind) == sorted([f"{kind}/a.png", "legend.png"])


def test_kinds_are_named_in_any_way():
    assert output_kinds.parse_kinds(["ids", "overlay"]) == output_kinds.parse_kinds([
                                    "overlay,ids"]) == ("ids", "overlay")
    assert output_kinds.parse_kinds(["scores, ids,", "ids"]) == ("ids", "scores")
    with pytest.raises(UserError, match="unknown kind of result 'score'. Did you mean scores"):
        output_kinds.parse_kinds(["ids,score"])
    with pytest.raises(UserError, match="choices: ids, overlay, scores, cityscapes-labelids, ade20k"):
        output_kinds.parse_kinds([","])


def test_models_of_other_classes_are_refused(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")

    def never(image):
        raise AssertionError("predicted all the same")

    for kind in ("cityscapes-labelids", "ade20k"):
        with pytest.raises(UserError, match=rf"--save {kind} is for models of its (19|150) classes, and this one has 2 "
                           r"of two; class 0 is '(road|wall)' there and 'dark' here"):
            predict_files(never, [tmp_path / "a.png"], tmp_path / "out", TWO, silent, ("ids", kind))
    assert files(tmp_path) == ["a.png"]
    # The same classes in a data set of one's own are as good, in another order they are not.
    classes = tuple(class_names.CITYSCAPES)
    own = SimpleNamespace(name="folder", classes=classes)
    output_kinds.require_classes(["ids", "scores", "cityscapes-labelids"], own)
    for wrong, message in ((classes[1:] + classes[:1], "class 0 is 'road' there and 'sidewalk' here"),
                           ((*classes, "more"), "class 19 is 'none' there and 'more' here"),
                           (classes[:-1], "class 18 is 'bicycle' there and 'none' here")):
        with pytest.raises(UserError, match=message):
            output_kinds.require_classes(["cityscapes-labelids"], SimpleNamespace(name="folder", classes=wrong))


def test_results_keep_the_names_that_the_test_server_looks_for(tmp_path):
    cityscapes = registry.DATASETS["cityscapes"]
    names = ["berlin/berlin_000000_000019_leftImg8bit", "bonn/bonn_000001_000019_leftImg8bit"]
    for name in names:
        (tmp_path / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / "test" / f"{name}.png")
    ids = np.full((3, 4), 18, np.uint8)
    lines = []
    predict_files(lambda image: ids, [tmp_path / "test"], tmp_path / "out", cityscapes, lines.append,
                  ("cityscapes-labelids",))
    assert not any(line.startswith("note: ") for line in lines)
    for name in names:
        with Image.open(tmp_path / f"out/cityscapes-labelids/{name}.png") as image:
            assert image.mode == "L" and (np.array(image) == 33).all()
    Image.new("RGB", (4, 3)).save(tmp_path / "test/street.png")
    predict_files(lambda image: ids, [tmp_path / "test"], tmp_path / "out", cityscapes, lines.append,
                  ("cityscapes-labelids",))
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == 1 and notes[0].endswith("1 of 3 do not, such as cityscapes-labelids/street.png")


def test_names_that_begin_alike_are_told():
    names = [Path("a/ulm_000000_000019.png"), Path("b/ulm_000000_000019_x.png"), Path("ulm_000001_000019.png")]
    assert output_kinds.ambiguous_names(names) == ["a/ulm_000000_000019.png", "b/ulm_000000_000019_x.png"]


def test_command_line(tmp_path, monkeypatch):
    from kseg.inference import prediction, segmenter

    monkeypatch.setattr(cli, "load_model", lambda arguments: ("model", Config(), TWO))
    monkeypatch.setattr(prediction, "predictor", lambda model, config: lambda image: np.ones(image.shape[:2], np.uint8))
    monkeypatch.setattr(segmenter, "scorer", lambda model, config: lambda image: (
        np.zeros(image.shape[:2], np.uint8), np.ones((*image.shape[:2], 2), np.float32)))
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--workdir", str(tmp_path), "--out"]
    assert main([*arguments, str(tmp_path / "one"), "--save", "ids"]) == 0
    assert files(tmp_path / "one") == ["ids/a.png", "legend.png"]
    assert image_files.read_image(tmp_path / "one/ids/a.png").max() == 1
    assert main([*arguments, str(tmp_path / "two"), "--save", "scores,overlay", "ids"]) == 0
    assert files(tmp_path / "two") == ["ids/a.png", "legend.png", "overlay/a.png", "scores/a.npy"]
    assert image_files.read_image(tmp_path / "two/ids/a.png").max() == 0
    with pytest.raises(UserError, match="--save ade20k is for models"):
        main([*arguments, str(tmp_path / "three"), "--save", "ade20k"])
    with pytest.raises(UserError, match="unknown kind of result"):
        main([*arguments, str(tmp_path / "three"), "--save", "colours"])


def test_help_lists_all_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    described = "".join(capsys.readouterr().out.split())
    for name, kind in KINDS.items():
        assert f"{name}:{kind.description}".replace(" ", "") in described
