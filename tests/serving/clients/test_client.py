"""Run the client against the real server over gRPC and REST: ids, overlays, errors."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kseg.errors import DataError, UserError
from kseg.images import drawing, image_files, picture_reader
from serving import client as command
from serving.clients import client, segment_files
from serving.clients.connections import RequestError
from tests.helpers import small_servables
from tests.helpers.running_servers import QUICK, running

TRANSPORTS = pytest.mark.parametrize("rest", (False, True), ids=("grpc", "rest"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("small")
    small_servables.segmentation(base, 1)
    config = base / "models.config"
    config.write_text(f"""model_config_list {{ config {{ name: "small" base_path: "{base}" model_platform: "tensorflow"
                          version_labels {{ key: "stable" value: 1 }} }} }}""")
    with running(
        replace(
            QUICK, rest_api_port=-1, model_config_file=str(config), allow_version_labels_for_unavailable_models=True
        )
    ) as running_server:
        yield running_server


@pytest.fixture(autouse=True)
def no_retry_delays(monkeypatch):
    monkeypatch.setattr(client, "RETRY_DELAYS", (0.0, 0.0))


def arguments(server, rest, *others):
    port = server.rest_port if rest else server.grpc_port
    return [*map(str, others), "--server", f"127.0.0.1:{port}", *["--rest"] * rest, "--model", "small"]


def opened(server, rest, **values):
    return contextlib.closing(
        client.Client(
            f"127.0.0.1:{server.rest_port if rest else server.grpc_port}", rest, **{"model": "small"} | values
        )
    )


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def saved(path, array, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **values)
    return path


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def ids_in(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.array(image)


@pytest.fixture
def photos(tmp_path):
    """Write images of four formats and sizes, one of them rotated by EXIF, and a damaged one."""
    directory = tmp_path / "photos"
    exif = Image.Exif()
    exif[picture_reader.EXIF_ORIENTATION] = 6
    saved(directory / "a.png", noise((20, 31)))
    saved(directory / "deep/b.jpg", noise((16, 24), 1))
    saved(directory / "lying.jpg", noise((10, 30), 2), exif=exif)
    saved(directory / "web.webp", noise((9, 9), 3), lossless=True)
    # Only the header of this file is intact.
    (directory / "damaged.jpg").write_bytes((directory / "deep/b.jpg").read_bytes()[:-200])
    return directory


@TRANSPORTS
@pytest.mark.parametrize("batch", (1, 3))
def test_ids_and_overlays_of_a_directory(server, photos, tmp_path, capsys, rest, batch):
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"classes": small_servables.CLASSES, "palette": small_servables.PALETTE}))
    out = tmp_path / "out"
    overlay = ["--overlay", *([] if rest else ["--classes", classes])]
    assert command.main(arguments(server, rest, photos, "--out", out, "--batch", batch, *overlay)) == 1
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    names = ["a.png", "deep/b.png", "lying.png", "web.png"]
    assert written == [f"ids/{name}" for name in names] + ["legend.png"] + [f"overlay/{name}" for name in names]
    for source, name in zip(("a.png", "deep/b.jpg", "lying.jpg", "web.webp"), names):
        image = image_files.read_image(photos / source)
        ids = ids_in(out / "ids" / name)
        assert np.array_equal(ids, small_servables.ids_of(image))
        expected = drawing.overlay(image, ids, small_servables.PALETTE)
        assert np.array_equal(image_files.read_image(out / "overlay" / name), expected)
    output = capsys.readouterr()
    code = "HTTP 400" if rest else "INVALID_ARGUMENT"
    assert output.err.count("skipped: ") == 1 and f"skipped: {photos / 'damaged.jpg'}: {code}: " in output.err
    assert "1 of 5 files" in output.err and "4 images" in output.out
    # The images of the batch with the damaged one are sent again, one by one.
    assert f"{ {1: 4, 3: 3}[batch] } requests" in output.out and "latency, ms" in output.out


@TRANSPORTS
def test_exit_status_is_0_without_failures(server, tmp_path, rest):
    saved(tmp_path / "in/a.png", noise((5, 7)))
    assert command.main(arguments(server, rest, tmp_path / "in/*.png", "--out", tmp_path)) == 0
    assert np.array_equal(ids_in(tmp_path / "ids/a.png"), small_servables.ids_of(noise((5, 7))))


@TRANSPORTS
def test_segment_from_python(server, rest):
    images = [noise((4, 5)), noise((6, 3), 1), noise((4, 5), 2)]
    with opened(server, rest, label="stable") as small:
        results = small.segment([png(image) for image in images])
        assert [ids.dtype for ids in results] == [np.uint8] * 3
        for ids, image in zip(results, images):
            assert np.array_equal(ids, small_servables.ids_of(image))
        (cost,) = small.costs
        assert cost.seconds > 0 and cost.sent > sum(len(png(image)) for image in images) and cost.received > 0
        with pytest.raises(RequestError, match="neither a JPEG nor a PNG") as caught:
            small.segment([png(images[0]), b"text"])
        assert (caught.value.code, caught.value.retryable) == ("INVALID_ARGUMENT", False)


@TRANSPORTS
@pytest.mark.parametrize("signature", ("predict_tensor", "predict_scores"))
def test_signatures_of_pixels_take_images_of_mixed_sizes(server, rest, signature):
    images = [noise((4, 5)), noise((6, 3), 1), noise((4, 5), 2)]
    with opened(server, rest, signature=signature) as small:
        results = small.segment([png(image) for image in images])
        # There is one request for each image size.
        assert len(small.costs) == 2
        with pytest.raises(DataError, match="image 1: "):
            small.segment([png(images[0]), b"text"])
    for ids, image in zip(results, images, strict=True):
        assert ids.dtype == np.uint8 and np.array_equal(ids, small_servables.ids_of(image))


@TRANSPORTS
def test_predict_map_returns_the_models_size_and_allows_no_overlay(server, tmp_path, rest):
    path = saved(tmp_path / "a.png", np.full((30, 40, 3), 130, np.uint8))
    with opened(server, rest, version=1, signature="predict_map") as small:
        (ids,) = small.segment([path.read_bytes()])
    assert ids.shape == small_servables.SIZE and (ids == 2).all()
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"classes": ["a"], "palette": [[1, 2, 3]]}))
    with pytest.raises(UserError, match="a.png has 40 x 30 .* 20 x 12"):
        command.main(
            arguments(
                server,
                rest,
                path,
                "--signature",
                "predict_map",
                "--overlay",
                "--classes",
                classes,
                "--out",
                tmp_path / "out",
            )
        )


def test_response_above_grpcs_default_limit(server):
    image = noise((990, 1000))
    with opened(server, False, signature="predict_tensor") as small:
        results = small.segment([png(image)] * 5)
        assert small.costs[0].received > 4 << 20
    assert len(results) == 5 and all(np.array_equal(ids, small_servables.ids_of(image)) for ids in results)


@TRANSPORTS
@pytest.mark.parametrize(
    "values, message",
    [
        ({"model": "smal"}, "model 'smal'.*(Did you mean small|no model of that name)"),
        ({"version": 9}, "model 'small', version 9.*: 1$"),
        ({"label": "canary"}, "Unrecognized servable version label: canary"),
        ({"signature": "predict"}, "signature 'predict'.*Choices: predict_map, .*serving_default$"),
        ({"signature": "serve_tf_examples"}, r"examples \(DT_STRING\) .* png_bytes, size;"),
    ],
)
def test_missing_models_versions_and_signatures_are_reported_with_the_choices(server, rest, values, message):
    with pytest.raises(UserError, match=message):
        opened(server, rest, **values)


def test_overlay_without_colors_fails_before_anything_is_written(server, tmp_path):
    saved(tmp_path / "a.png", noise((5, 7)))
    with pytest.raises(UserError, match="--classes FILE"):
        command.main(arguments(server, False, tmp_path / "a.png", "--overlay", "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_images_are_skipped(server, tmp_path, capsys):
    saved(tmp_path / "a.png", noise((5, 7)))
    (tmp_path / "notes.txt").write_text("not an image")
    inputs = (tmp_path / "notes.txt", tmp_path / "a.png")
    assert command.main(arguments(server, True, *inputs, "--out", tmp_path / "out")) == 1
    assert f"skipped: {tmp_path / 'notes.txt'}: " in capsys.readouterr().err
    assert (tmp_path / "out/ids/a.png").exists()


def test_rest_needs_no_tensorflow(server, tmp_path):
    saved(tmp_path / "a.png", noise((5, 7)))
    code = (
        "import sys; from serving import client; client.main(sys.argv[1:]); "
        "assert not {'tensorflow', 'grpc', 'keras'} & set(sys.modules)"
    )
    subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            *arguments(server, True, tmp_path / "a.png", "--overlay", "--out", tmp_path / "out"),
        ],
        check=True,
        cwd=Path(client.__file__).parents[2],
        timeout=120,
    )
    assert np.array_equal(ids_in(tmp_path / "out/ids/a.png"), small_servables.ids_of(noise((5, 7))))


def test_tls_with_a_private_authority(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not on the PATH; this test needs it to create a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            key,
            "-out",
            certificate,
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    config = tmp_path / "ssl.config"
    config.write_text(
        "".join(
            f"{name}: {json.dumps(path.read_text())}\n"
            for name, path in (("server_key", key), ("server_cert", certificate))
        )
    )
    small_servables.segmentation(tmp_path, 1)
    with running(
        replace(QUICK, model_name="small", model_base_path=str(tmp_path), ssl_config_file=str(config))
    ) as secured:
        with opened(secured, False, tls_ca=certificate) as small:
            (ids,) = small.segment([png(noise((5, 7)))])
        with pytest.raises(RequestError, match="UNAVAILABLE"):
            opened(secured, False, timeout=60)
    assert np.array_equal(ids, small_servables.ids_of(noise((5, 7))))
    for rest in (False, True):
        with pytest.raises(UserError, match="missing.pem"):
            client.Client("127.0.0.1:1", rest, tls_ca=tmp_path / "missing.pem")
    with pytest.raises(UserError, match="notes.pem .*PEM"):
        (tmp_path / "notes.pem").write_text("no certificate")
        client.Client("127.0.0.1:1", rest=True, tls_ca=tmp_path / "notes.pem")


def test_cost_table_matches_hand_computed_statistics():
    costs = [client.Cost(0.001 * number, 1000 * number, 2000) for number in range(1, 21)]
    assert [line.split() for line in segment_files.cost_table(costs).split("\n")] == [
        ["20", "requests", "median", "95", "%", "largest", "sum"],
        ["latency,", "ms", "10.5", "19.1", "20.0", "210.0"],
        ["sent,", "kB", "10.5", "19.1", "20.0", "210.0"],
        ["received,", "kB", "2.0", "2.0", "2.0", "40.0"],
    ]
