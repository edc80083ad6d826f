# Image for training, with the command kseg. Build it from the root of a checkout:
#     docker build --tag kseg .
#     docker build --build-arg EXTRA=gpu --tag kseg:gpu .
# The base is a Debian or an Ubuntu that has Python 3.11 or offers it, such as NVIDIA's images on Ubuntu 22.04.
ARG BASE=python:3.11-slim
FROM ${BASE}

# OpenCV needs GLib.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libglib2.0-0 \
    && (command -v python3.11 || apt-get install --yes --no-install-recommends python3.11 python3.11-venv) \
    && rm -rf /var/lib/apt/lists/*
RUN python3.11 -m venv /opt/kseg
ENV VIRTUAL_ENV=/opt/kseg PATH=/opt/kseg/bin:${PATH}
WORKDIR /kseg
COPY bootstrap.lock requirements.lock pyproject.toml setup.cfg setup.py README.md LICENSE ./
# The lock is complete, so nothing is resolved.
RUN pip install --no-cache-dir --no-deps --require-hashes -r bootstrap.lock \
    && uv pip install --no-cache --no-deps --require-hashes -r requirements.lock
COPY configs configs
COPY kseg kseg
COPY pipeline pipeline
COPY serving serving
RUN uv pip install --no-cache --no-deps --no-build-isolation .
# An extra that the lock does not have: gpu adds NVIDIA's libraries, and changes no version of the lock.
ARG EXTRA=""
RUN if [ -n "${EXTRA}" ]; then uv pip install --no-cache --no-build-isolation ".[${EXTRA}]"; fi
# Data and runs are mounted here.
WORKDIR /workspace
ENTRYPOINT ["kseg"]
