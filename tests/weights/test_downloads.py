"""Downloads end whole under their name, or not at all; no test leaves this machine."""

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
    """Serves CONTENT under most names; counts requests."""

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
        """Keep the test's output clean."""


class Server(http.server.ThreadingHTTPServer):
    """A server that says nothing of connections which the other side has closed."""

    def handle_error(self, *_):
        """Keep the test's output clean."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Handler, "requests", [])
    # A proxy of the machine's would be asked for this machine's own addresses.
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
def nothing_left(store):
    yield
    assert not list(store.glob("*"))


def test_a_file_is_fetched_once_and_reported(server, store):
    said = []
    path = downloads.fetch(f"{server}/models/{NAMED}", said.append)
    assert path == store / NAMED and path.read_bytes() == CONTENT
    assert [entry.name for entry in store.iterdir()] == [NAMED]
    assert said[0] == f"downloading {server}/models/{NAMED} (2.2 MiB)" and said[-1].startswith("2/2 MiB")
    assert downloads.fetch(f"{server}/models/{NAMED}", said.append) == path
    assert len(Handler.requests) == 1


def test_a_name_without_a_digest_is_not_checked(server, store):
    assert downloads.fetch(f"{server}/plain.pth").read_bytes() == CONTENT


def test_another_content_than_the_name_says(server, store):
    address = f"{server}/net-00000000.pth"
    with nothing_left(store), pytest.raises(WeightsError, match="SHA-256 begins with .* name says 00000000") as error:
        downloads.fetch(address)
    assert f"fetch {address} by other means and put it at {store / 'net-00000000.pth'}" in str(error.value)


def test_a_download_that_is_cut_off(server, store):
    with nothing_left(store), pytest.raises(WeightsError, match="after 1000 of|IncompleteRead"):
        downloads.fetch(f"{server}/short.pth")


def test_what_the_server_does_not_have(server, store):
    with nothing_left(store), pytest.raises(WeightsError, match="answers 404.*put it at .*missing.pth"):
        downloads.fetch(f"{server}/missing.pth")


def test_no_network(server, store):
    address = server.rpartition(":")[0] + ":9/net.pth"
    with nothing_left(store), pytest.raises(WeightsError, match="cannot download") as error:
        downloads.fetch(address)
    assert f"fetch {address} by other means and put it at {store / 'net.pth'}" in str(error.value)


def test_an_interruption_leaves_nothing(server, store):
    def interrupt(_):
        raise KeyboardInterrupt

    with nothing_left(store), pytest.raises(KeyboardInterrupt):
        downloads.fetch(f"{server}/plain.pth", interrupt)


def test_a_file_address(store, tmp_path):
    source = tmp_path / "given" / NAMED
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    assert downloads.fetch(source.as_uri()).read_bytes() == CONTENT


def test_addresses_that_are_none(store):
    for address in ("", "resnet50", "https://example.org/"):
        with pytest.raises(WeightsError, match="cannot download|no address"):
            downloads.fetch(address)


def test_backbones_are_found_under_their_names(store, monkeypatch):
    store.mkdir()
    (store / NAMED).write_bytes(CONTENT)
    monkeypatch.setitem(downloads.BACKBONES, "resnet7", f"http://127.0.0.1:9/{NAMED}")
    assert downloads.backbone("resnet7") == store / NAMED
    # Somebody has put another file there, or half of it.
    (store / "resnet50_v1c-2cccc1ad.pth").write_bytes(b"half")
    with pytest.raises(WeightsError, match="resnet50_v1c-2cccc1ad.pth is damaged or another file: .* says 2cccc1ad"):
        downloads.backbone("resnet50_v1c")
    with pytest.raises(WeightsError, match="unknown backbone file 'resnet50_v1x'. Did you mean resnet50_v1c"):
        downloads.backbone("resnet50_v1x")


def test_every_published_name_carries_a_digest():
    assert all(downloads.DIGEST.search(address) for address in downloads.BACKBONES.values())


def test_the_default_directory(monkeypatch):
    monkeypatch.delenv("KSEG_WEIGHTS", raising=False)
    assert str(downloads.place("https://example.org/a/net.pth?download=1")) == "weights/net.pth"
