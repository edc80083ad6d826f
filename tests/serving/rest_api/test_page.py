"""Test the page's routes: their contents, and that they read no other files."""

import http.client
import json
import shutil

import pytest
from PIL import Image
from tensorflow.core.framework import types_pb2

from kseg.datasets import class_names
from kseg.errors import UserError
from serving.rest_api import page
from tests.helpers.page_servers import Answers, FakeModels, options, serving, signature, write_classes

NAMES, COLORS = ["sky", "road"], [[1, 2, 3], [4, 5, 6]]


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    # The path is sent unchanged, while a browser would resolve dots first.
    connection.putrequest("GET", path, skip_accept_encoding=True)
    connection.endheaders()
    response = connection.getresponse()
    return response.status, response.headers, response.read()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    (base / "outside.jpg").write_bytes(b"not a sample")
    shutil.copytree(page.FILES / "samples", base / "samples")
    (base / "samples/notes.txt").write_text("not a picture")
    (base / "samples/linked.jpg").symlink_to(base / "outside.jpg")
    (base / "samples/inner.jpg").symlink_to(base / "samples/shapes-1.jpg")
    broken = write_classes(base / "seg/2", NAMES, COLORS[:1])
    models = FakeModels(
        {
            "seg": {1: write_classes(base / "seg/1", NAMES, COLORS), 2: broken},
            "bare": {7: base / "bare/7"},
            "half": {1: base / "half/1"},
            "floats": {3: base / "floats/3"},
            "none yet": {},
        },
        {
            "half": {"other": signature(), "more": signature()},
            "floats": {"serving_default": signature(("x",), ("y",), types_pb2.DT_FLOAT)},
        },
        {"stable": 1, "gone": 9},
    )
    with serving(models, Answers(None), page_samples=str(base / "samples"), max_request_bytes=12345) as port:
        yield port


def listed(port):
    listing = json.loads(get(port, "/page/models")[2])
    return listing, {model["name"]: model for model in listing["models"]}


def test_models_are_listed_with_classes_newest_version_first(served):
    listing, models = listed(served)
    assert listing["max_request_bytes"] == 12345
    assert list(models) == ["bare", "floats", "half", "none yet", "seg"]
    assert [version["version"] for version in models["seg"]["versions"]] == ["2", "1"]
    # A label of an unavailable version is not listed.
    assert models["seg"]["labels"] == {"stable": "1"} and models["bare"]["labels"] == {}
    assert models["seg"]["versions"][1] == {
        "version": "1",
        "classes": NAMES,
        "palette": COLORS,
        "note": None,
        "problem": None,
    }
    assert models["none yet"]["versions"] == []


def test_versions_without_usable_classes_have_generated_colors(served):
    models = listed(served)[1]
    broken, bare = models["seg"]["versions"][0], models["bare"]["versions"][0]
    for version in (broken, bare):
        assert version["classes"] == [] and version["problem"] is None
        assert len({tuple(color) for color in version["palette"]}) == 256
        assert tuple(version["palette"][1]) == class_names.class_palette(2)
    assert bare["note"] is None
    assert "seg/2/assets/classes.json" in broken["note"]


def test_models_that_take_no_pictures_have_a_problem(served):
    models = listed(served)[1]
    problem = models["half"]["versions"][0]["problem"]
    assert "no signature serving_default" in problem and "more, other" in problem
    assert "serving_default takes x and returns y" in models["floats"]["versions"][0]["problem"]


def test_security_headers_allow_only_the_pages_server(served):
    for path, kind in {
        "/": "text/html",
        "/page/page.js": "text/javascript",
        "/page/page.css": "text/css",
        "/page/icon.svg": "image/svg+xml",
        "/page/samples/shapes-1.jpg": "image/jpeg",
        "/page/models": "application/json",
    }.items():
        status, headers, body = get(served, path)
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind) and body
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
        assert not any(word in headers["Content-Security-Policy"] for word in ("unsafe", "*", "http"))
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_only_pictures_within_the_directory_are_samples(served):
    assert listed(served)[0]["samples"] == ["inner.jpg", "shapes-1.jpg", "shapes-2.jpg", "shapes-3.jpg"]
    assert get(served, "/page/samples/inner.jpg")[2] == (page.FILES / "samples/shapes-1.jpg").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/page/samples/linked.jpg",
        "/page/samples/notes.txt",
        "/page/samples/../outside.jpg",
        "/page/samples/..%2foutside.jpg",
        "/page/samples/%2e%2e/outside.jpg",
        "/page/samples/%2fetc%2fpasswd",
        "/page/../page.py",
        "/page/..%2fpage.py",
        "/page/samples",
        "/page/page.html/..",
        "/page/%00",
    ],
)
def test_other_paths_are_404(served, path):
    status, _, body = get(served, path)
    assert status == 404 and len(body) < 100


def test_the_shipped_samples_are_small_jpegs():
    samples = page.samples(page.FILES / "samples")
    assert len(samples) == 3
    for path in samples.values():
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (256, 128))
        assert path.stat().st_size < 20_000


def test_disabled_page_has_no_routes_and_missing_samples_are_an_error(tmp_path):
    assert page.routes(FakeModels({}), options(page=False)) == []
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="--page_samples: "):
            page.routes(FakeModels({}), options(page_samples=str(directory)))
