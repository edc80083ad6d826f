"""Converted checkpoints give the original's results and have a provenance; failed conversions write nothing."""

import hashlib
import json

import numpy as np
import pytest

import kseg
from kseg import convert, models
from kseg.conversion import original_configs
from kseg.errors import ConfigError, UserError, WeightsError
from kseg.weights import downloads, keras_files, loading
from tests.helpers.exhaustive import all_of
from tests.helpers.original_files import mmseg_encnet, randomize, state_of, write_checkpoint
from tests.helpers.shared_files import FIXTURES, needs_fixtures

# The cases cover both containers and both systems, and pyramids with and without a reordered bottleneck.
CASES = all_of(
    ["mmseg/encnet_r50_d8", "sss/deeplabv3plus_r18_d16"], "mmseg/deeplabv3_r101_d16_mg124_ohem", "sss/apcnet_r50_d8"
)
CONFIG = """
from kseg.config import *
from kseg.config.variants import Variant

VARIANTS = {variants}


def config():
    return Config(data=Data(name="folder", directory={data!r}), model={model!r}, init=Init(skip={skip!r}))
"""


def write_config(directory, values, classes=0, variants="{}", skip=()):
    """Write a config file of a model and a folder dataset with that many classes, and return its path."""
    names = "".join(f"class{index}\n" for index in range(classes or values.classes))
    (directory / "classes.txt").write_text(names)
    path = directory / "given.py"
    path.write_text(CONFIG.format(data=str(directory), model=values.model, variants=variants, skip=skip))
    return path


@pytest.fixture(scope="module")
def values():
    return original_configs.translate(mmseg_encnet())


@pytest.fixture(scope="module")
def trained(values):
    """Return a model with random weights."""
    model = models.build(values.model, values.classes)
    randomize(model)
    return model


@pytest.fixture
def checkpoint(tmp_path, trained):
    meta = {
        "mmseg_version": "1.2.2",
        "iter": 40000,
        "env_info": "x" * 500,
        "PALETTE": [[1, 2, 3]],
        "dataset_meta": {"classes": ["a", "b", "c"]},
    }
    return write_checkpoint(tmp_path / "trained.pth", state_of(trained), meta=meta)


def read_back(path, values):
    model = models.build(values.model, values.classes)
    loading.load_keras(model, path)
    return model


@needs_fixtures
@pytest.mark.parametrize("name", CASES)
def test_converted_fixtures_give_the_original_logits(name, tmp_path):
    directory = FIXTURES / name
    description = json.loads((directory / "config.json").read_text())
    values = original_configs.translate(description["cfg"])
    out = tmp_path / "made" / "net.weights.h5"
    arguments = [str(directory / "model.pth"), "--config", str(write_config(tmp_path, values)), "--out", str(out)]
    assert convert.main(arguments) == 0
    outputs = read_back(out, values)(np.load(directory / "input.npy").astype(np.float32), training=False)
    expected = np.load(directory / "logits.npy")
    assert np.max(np.abs(outputs["main"] - expected) / np.maximum(np.abs(expected), 1)) <= 1e-4
    record = json.loads((out.parent / "net.provenance.json").read_text())
    assert record["parameters"] == description["params"]
    assert record["source"]["system"] == name.split("/")[0]


def test_provenance(checkpoint, values, trained, tmp_path, capsys):
    out = tmp_path / "net.weights.h5"
    config = write_config(tmp_path, values)
    assert convert.main([str(checkpoint), "--config", str(config), "--out", str(out)]) == 0
    for name, variable in loading.mmseg_names(read_back(out, values)).items():
        np.testing.assert_array_equal(variable.numpy(), loading.mmseg_names(trained)[name].numpy())
    record = json.loads((tmp_path / "net.provenance.json").read_text())
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert record["source"] == {
        "origin": str(checkpoint),
        "file": "trained.pth",
        "sha256": digest,
        "bytes": checkpoint.stat().st_size,
        "system": "mmseg",
        "meta": {"mmseg_version": "1.2.2", "iter": 40000, "classes": 3},
    }
    assert record["weights"] == {
        "file": "net.weights.h5",
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "bytes": out.stat().st_size,
    }
    assert record["kseg"] == kseg.__version__
    assert record["config"].pop("values")["model"]["encnet"]["codewords"] == 5
    assert record["config"] == {"name": "given", "dataset": "folder", "classes": 3}
    assert record["tensors"] == len(state_of(trained))
    assert record["parameters"] + record["statistics"] == sum(array.size for array in state_of(trained).values())
    printed = capsys.readouterr().out
    assert f"{checkpoint}: mmseg, {record['tensors']} tensors, {record['parameters']:,} parameters" in printed
    assert f"wrote {out}" in printed and "net.provenance.json" in printed
    # Python compiles the config file into __pycache__.
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "classes.txt",
        "given.py",
        "net.provenance.json",
        "net.weights.h5",
        "trained.pth",
    ]


def test_a_published_variant_is_downloaded(checkpoint, values, tmp_path, monkeypatch, capsys):
    store = tmp_path / "store"
    monkeypatch.setenv("KSEG_WEIGHTS", str(store))
    rows = (
        f'{{"here": Variant({{"train.steps": 7}}, weights={checkpoint.as_uri()!r}), "unpublished": Variant({{}}), '
        '"far": Variant({}, weights="http://127.0.0.1:9/net-01234567.pth")}'
    )
    config, out = write_config(tmp_path, values, variants=rows), tmp_path / "net.weights.h5"
    assert convert.main(["--config", f"{config}:here", "--out", str(out)]) == 0
    assert (store / "trained.pth").read_bytes() == checkpoint.read_bytes()
    record = json.loads((tmp_path / "net.provenance.json").read_text())
    assert (record["source"]["origin"], record["config"]["name"]) == (checkpoint.as_uri(), "given:here")
    assert record["config"]["values"]["train"]["steps"] == 7
    with pytest.raises(WeightsError) as error:
        convert.main(["--config", f"{config}:far", "--out", str(out)])
    assert "http://127.0.0.1:9/net-01234567.pth" in str(error.value) and str(store) in str(error.value)
    with pytest.raises(ConfigError, match=f"no weights are published for {config}:unpublished"):
        convert.main(["--config", f"{config}:unpublished", "--out", str(out)])
    with pytest.raises(ConfigError, match="CHECKPOINT.*given.py: here, far"):
        convert.main(["--config", str(config), "--out", str(out)])


def test_bgr_reverses_the_first_kernel(checkpoint, values, trained, tmp_path):
    out = tmp_path / "net.weights.h5"
    convert.main(
        [
            str(checkpoint),
            "--config",
            str(write_config(tmp_path, values)),
            "--out",
            str(out),
            "--set",
            "init.channels=BGR",
        ]
    )
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    expected = trained(images, training=False)["main"]
    actual = read_back(out, values)(images[..., ::-1], training=False)["main"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_backbone_becomes_the_initial_weights_of_a_model(values, trained, tmp_path, capsys):
    state = {
        name.removeprefix("backbone."): array
        for name, array in state_of(trained).items()
        if name.startswith("backbone.")
    }
    np.savez(tmp_path / "resnet.npz", **state, **{"fc.weight": np.zeros((5, 8), np.float32)})
    out, config = tmp_path / "start.weights.h5", str(write_config(tmp_path, values))
    arguments = [str(tmp_path / "resnet.npz"), "--config", config, "--out", str(out)]
    # Without --backbone the missing heads are an error.
    with pytest.raises(WeightsError, match="decode_head.conv_seg.weight"):
        convert.main(arguments)
    assert not out.exists()
    assert convert.main([*arguments, "--backbone"]) == 0
    assert "train.seed 0" in capsys.readouterr().out
    first = read_back(out, values)
    for name, array in state_of(first).items():
        if name.startswith("backbone."):
            np.testing.assert_array_equal(array, state_of(trained)[name])
        elif name.endswith(".conv.weight"):
            assert array.any() and not np.array_equal(array, state_of(trained)[name]), name
    # The same seed draws the same heads.
    convert.main([*arguments, "--backbone"])
    for name, array in state_of(read_back(out, values)).items():
        np.testing.assert_array_equal(array, state_of(first)[name])


def test_npz_files_and_init_skip(values, trained, tmp_path, capsys):
    state = {name: array for name, array in state_of(trained).items() if not name.startswith("auxiliary_head.")}
    np.savez(tmp_path / "part.npz", **state, extra=np.zeros(3, np.float32))
    config, out = write_config(tmp_path, values), tmp_path / "net.weights.h5"
    arguments = [str(tmp_path / "part.npz"), "--config", str(config), "--out", str(out), "--set"]
    with pytest.raises(WeightsError) as error:
        convert.main([*arguments, "init.skip="])
    # The error lists all unmatched weights of both sides.
    for name in ("extra", "auxiliary_head.convs.0.conv.weight", "auxiliary_head.conv_seg.bias"):
        assert name in str(error.value)
    assert not out.exists() and not (tmp_path / "net.provenance.json").exists()
    assert convert.main([*arguments, "init.skip=auxiliary_head.*,extra,fc.*,layer1.0.conv1.weight"]) == 0
    notes = json.loads((tmp_path / "net.provenance.json").read_text())["notes"]
    assert "init.skip patterns for backbone files were ignored: fc.*, layer1.0.conv1.weight" in notes
    assert any("auxiliary_head.conv_seg.bias" in note and "extra" in note for note in notes)
    assert "note: init.skip patterns for backbone files were ignored" in capsys.readouterr().out


def test_a_file_that_differs_when_read_back_is_an_error(checkpoint, values, tmp_path, monkeypatch):
    save = keras_files.save_weights

    def damage(model, path):
        kernel = loading.mmseg_names(model)["decode_head.conv_seg.bias"]
        original = kernel.numpy()
        kernel.assign(original + np.float32(1e-6))
        save(model, path)
        kernel.assign(original)

    monkeypatch.setattr(keras_files, "save_weights", damage)
    out = tmp_path / "net.weights.h5"
    out.write_text("an older file")
    with pytest.raises(WeightsError, match="in 1 of .* weights, first in decode_head.conv_seg.bias"):
        convert.main([str(checkpoint), "--config", str(write_config(tmp_path, values)), "--out", str(out)])
    assert out.read_text() == "an older file"
    assert not [path for path in tmp_path.iterdir() if "provenance" in path.name or path.name.startswith(".")]


def test_a_different_number_of_classes(checkpoint, values, tmp_path):
    out = tmp_path / "net.weights.h5"
    with pytest.raises(WeightsError, match="conv_seg"):
        convert.main([str(checkpoint), "--config", str(write_config(tmp_path, values, 4)), "--out", str(out)])
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--out NAME.weights.h5 is needed, got nothing"),
        (["--out", "net.h5"], "--out NAME.weights.h5 is needed, got net.h5"),
        (["--out", ".weights.h5"], "--out NAME.weights.h5 is needed"),
        (["a.pth", "--out", "a.weights.h5"], "--config is needed"),
        (["a.pth", "--config", "encnet_shapes", "--out", "a.weights.h5"], "a.pth does not exist"),
        (["a.pth", "--config", "encnet_shape", "--out", "a.weights.h5"], "unknown config"),
        (["given.py", "--config", "encnet_shapes", "--out", "a.weights.h5"], "not a file of weights"),
        (["half.pth", "--config", "encnet_shapes", "--out", "a.weights.h5"], "half.pth"),
        (["--verify", "nowhere"], "--verify takes a directory, and nowhere is not one"),
        (["a.pth", "--verify", "."], "omit CHECKPOINT, --out, --backbone and --average"),
        (["--verify", ".", "--out", "a.weights.h5"], "omit CHECKPOINT, --out, --backbone and --average"),
        (["--verify", ".", "--average"], "omit CHECKPOINT, --out, --backbone and --average"),
        (["--config", "encnet_shapes", "--out", "a.weights.h5", "--backbone"], "--backbone takes a CHECKPOINT"),
        (["--verify", ".", "--set", "train.steps=1"], "--set changes a config; name it with --config"),
        (["--verify", "."], "input.npy does not exist"),
    ],
)
def test_bad_command_lines(arguments, message, checkpoint, values, tmp_path, monkeypatch):
    write_config(tmp_path, values)
    (tmp_path / "half.pth").write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        convert.main(arguments)
    assert message in str(error.value)
    assert not list(tmp_path.glob("a.*"))


def test_every_published_address_ends_in_a_file_name():
    from kseg.config import files

    addresses = [
        row.weights
        for name in files.config_names()
        for row in files.read_config_file(name).variants.values()
        if row.weights
    ]
    assert all(downloads.download_path(address).suffix == ".pth" for address in addresses)
    # Files with the same name would overwrite one another.
    assert len({downloads.download_path(address).name for address in addresses}) == len(set(addresses))
