# vlds in a container, for CPUs or NVIDIA GPUs. PyTorch's index decides which:
#
#   docker build -t vlds --build-arg TORCH_INDEX=URL .     URL: PyTorch's index of its CPU or CUDA build
#   docker run --rm -v "$PWD/runs:/vlds/runs" vlds         the demo: three minutes on two cores
#   docker run --rm --gpus all --ipc host -v "$PWD:/vlds" vlds train vqa.yaml
#
# Without TORCH_INDEX, pip's own index gives the CUDA build, which runs on CPUs too. Loader workers share
# memory: --ipc host, or --shm-size 8g.
FROM python:3.12-slim

# The compiler makes dropout's kernel on a CPU, and what DeepSpeed builds.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.9"

COPY . /src
RUN pip install /src && rm -rf /src

# Runs write as whoever starts the container: docker run --user "$(id -u)".
ENV HOME=/tmp
WORKDIR /vlds
ENTRYPOINT ["vlds"]
CMD ["demo"]
