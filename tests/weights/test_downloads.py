"""Downloads are complete or absent, and verified. All tests use a local server."""

import contextlib
import hashlib
import http.server
import threading

import pytest

from kseg.errors import WeightsError
from kseg.weights import downloads

CONTENT = bytes(range(256)) * 9000
NAMED = f"backbone-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    """A handler that serves CONTENT under most names and records the requests."""

    requests = []

    def do_GET(self):
        self.requests.append(self.path)
        if self.path.endswith("missing.pth"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000] if "short" in self.path else CONTENT)

    def log_message(self, *_):
        """Log nothing."""


class Server(http.server.ThreadingHTTPServer):
    """A server that ignores connections closed by the client."""

    def handle_error(self, *_):
        """Log nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Handler, "requests", [])
    # A proxy of this machine would otherwise receive the requests to local addresses.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("KSEG_WEIGHTS", str(tmp_path / "store"))
    return tmp_path / "store"


@contextlib.contextmanager
def assert_store_stays_empty(store):
    yield
    assert not list(store.glob("*"))


def test_a_file_is_downloaded_once_and_reported(server, store):
    lines = []
    path = downloads.fetch(f"{server}/models/{NAMED}", lines.append)
    assert path == store / NAMED and path.read_bytes() == CONTENT
    assert [entry.name for entry in store.iterdir()] == [NAMED]
    assert f"{server}/models/{NAMED} (2.2 MiB)" in lines[0] and lines[-1].startswith("2/2 MiB")
    assert downloads.fetch(f"{server}/models/{NAMED}", lines.append) == path
    assert len(Handler.requests) == 1


def test_a_name_without_a_digest_is_not_checked(server, store):
    assert downloads.fetch(f"{server}/plain.pth").read_bytes() == CONTENT


def test_a_wrong_digest_is_refused(server, store):
    address = f"{server}/net-00000000.pth"
    with assert_store_stays_empty(store), pytest.raises(WeightsError, match="SHA-256.*00000000") as error:
        downloads.fetch(address)
    assert address in str(error.value) and str(store / "net-00000000.pth") in str(error.value)


def test_an_incomplete_download_is_refused(server, store):
    with assert_store_stays_empty(store), pytest.raises(WeightsError, match="after 1000 of|IncompleteRead"):
        downloads.fetch(f"{server}/short.pth")


def test_a_missing_file_on_the_server(server, store):
    with assert_store_stays_empty(store), pytest.raises(WeightsError, match="404.*missing.pth"):
        downloads.fetch(f"{server}/missing.pth")


def test_no_network(server, store):
    address = server.rpartition(":")[0] + ":9/net.pth"
    with assert_store_stays_empty(store), pytest.raises(WeightsError, match="cannot download") as error:
        downloads.fetch(address)
    assert address in str(error.value) and str(store / "net.pth") in str(error.value)


def test_an_interruption_leaves_no_file(server, store):
    def interrupt(_):
        raise KeyboardInterrupt

    with assert_store_stays_empty(store), pytest.raises(KeyboardInterrupt):
        downloads.fetch(f"{server}/plain.pth", interrupt)


def test_a_file_address(store, tmp_path):
    source = tmp_path / "given" / NAMED
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    assert downloads.fetch(source.as_uri()).read_bytes() == CONTENT


def test_invalid_addresses(store):
    for address in ("", "resnet50", "https://example.org/"):
        with pytest.raises(WeightsError, match="cannot download|not the address"):
            downloads.fetch(address)


def test_backbones_are_found_by_name(store, monkeypatch):
    store.mkdir()
    (store / NAMED).write_bytes(CONTENT)
    monkeypatch.setitem(downloads.BACKBONES, "resnet7", f"http://127.0.0.1:9/{NAMED}")
    assert downloads.fetch_backbone("resnet7") == store / NAMED
    # A file placed by hand may be incomplete.
    (store / "resnet50_v1c-2cccc1ad.pth").write_bytes(b"half")
    with pytest.raises(WeightsError, match="resnet50_v1c-2cccc1ad.pth is damaged or another file"):
        downloads.fetch_backbone("resnet50_v1c")
    with pytest.raises(WeightsError, match="unknown backbone file 'resnet50_v1x'. Did you mean resnet50_v1c"):
        downloads.fetch_backbone("resnet50_v1x")


def test_all_published_names_contain_a_digest():
    assert all(downloads.DIGEST.search(address) for address in downloads.BACKBONES.values())


def test_the_default_directory(monkeypatch):
    monkeypatch.delenv("KSEG_WEIGHTS", raising=False)
    assert str(downloads.download_path("https://example.org/a/net.pth?download=1")) == "weights/net.pth"
