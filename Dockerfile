# Training image: CUDA 13 (what torch 2.13 is built for), vLLM for rollouts, an unprivileged user.
#   docker build -t simct_pl .
#   docker run --gpus all --ipc host -v "$PWD/runs:/home/simct/runs" simct_pl fit --recipe recipes/…
# The toolkit ("devel") is needed at run time: vLLM and torch.compile build kernels for the card that they meet.
ARG CUDA_VERSION=13.0.2
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH

# Unpinned because Ubuntu removes old versions from its archive: a pinned one stops building.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap build-essential git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv "$VIRTUAL_ENV" \
    && useradd --create-home --uid 10001 --shell /bin/bash simct

# The heavy layers depend on two versions only, so that a change of the source does not fetch them again.
RUN pip install torch==2.13.0 \
    && pip install vllm==0.32.0

WORKDIR /opt/simct_pl
COPY pyproject.toml README.md LICENSE ./
COPY simct_pl simct_pl
COPY callbacks callbacks
COPY recipes recipes
# The versions are in pyproject.toml, which is what the path names.
# hadolint ignore=DL3013
RUN pip install '.[vllm]'

# By number, so that a cluster can check that it is not root.
USER 10001
WORKDIR /home/simct
# Rollouts run inside the training process, which hands the engine its weights (simct_pl/rollout/vllm.py).
ENV VLLM_ENABLE_V1_MULTIPROCESSING=0
ENTRYPOINT ["python", "-m", "simct_pl"]
CMD ["--help"]
