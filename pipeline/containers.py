"""Docker, which TFX's InfraValidator starts TensorFlow Serving in."""

import os

import docker
from docker.errors import DockerException

from kseg.errors import UserError


def address() -> str:
    """Return where Docker is said to listen; empty: where it does by default."""
    return os.environ.get("DOCKER_HOST", "")


def require() -> None:
    """Raise UserError where Docker does not answer."""
    try:
        client = docker.DockerClient(base_url=address() or None)
        try:
            client.ping()
        finally:
            client.close()
    except DockerException as error:
        raise UserError(f"--infra-validator: docker does not answer at {address() or 'its usual place'}: {error}; "
                        "start it, or leave the flag out") from None
