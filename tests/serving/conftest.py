"""Fixtures of several test files; each imports its helper when used, because the helpers need different packages."""

import pytest


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(base):
    """A gRPC server of the models in grpc_requests.two_models."""
    from tests.helpers import grpc_requests

    with grpc_requests.two_models(base) as started:
        yield started


@pytest.fixture(scope="module")
def stubs(server):
    from tests.helpers import running_servers

    with running_servers.connected(server) as connected:
        yield connected


@pytest.fixture
def disk(tmp_path):
    from tests.helpers import swapped_versions

    return swapped_versions.Disk(tmp_path / "base")


@pytest.fixture
def serve(disk):
    """A function that starts a ModelManager on the disk's versions, which is stopped at the end."""
    from tests.helpers import swapped_versions

    with swapped_versions.starting(disk) as start:
        yield start


@pytest.fixture
def threads():
    from tests.helpers import batched_models

    with batched_models.schedulers() as (make, pool):
        yield make, pool


@pytest.fixture
def batching(threads):
    """A function that makes a scheduler and a model wrapped by it, which are stopped at the end."""
    return threads[0]


@pytest.fixture
def pool(threads):
    """Threads for concurrent requests."""
    return threads[1]


@pytest.fixture(scope="module")
def open_page():
    from tests.helpers import browser

    with browser.started() as opened:
        yield opened


@pytest.fixture(scope="module")
def answers():
    """Fake of :predict, whose responses a test chooses."""
    from tests.helpers import page_servers

    return page_servers.Answers(None)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from tests.helpers import page_servers

    return page_servers.street_models(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def port(models, answers):
    """Port of a server of the page over `models`."""
    from tests.helpers import page_servers

    with page_servers.serving(models, answers) as port:
        yield port


@pytest.fixture
def shown(open_page, port, answers):
    """Open the page at 1280 x 900; the responses are IDS until a test chooses others."""
    from tests.helpers import page_actions, page_servers

    answers.choose, answers.requests = lambda *request: page_servers.png_of(page_servers.IDS), []
    driver = open_page(f"http://127.0.0.1:{port}/", 1280, 900)
    page_actions.until(driver, "document.querySelectorAll('#samples img').length === 3")
    return driver
