# docker build -t pluribus .
# docker run --rm -p 127.0.0.1:8020:8020 pluribus            (with --gpus all, on GPUs)
#
# pip asks the index it is configured with; another one is a build argument:
#   docker build --build-arg PIP_INDEX_URL --build-arg PIP_EXTRA_INDEX_URL -t pluribus .
FROM python:3.11-slim AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/pluribus
WORKDIR /src
COPY constraints.txt ./
RUN /opt/pluribus/bin/pip install --constraint constraints.txt torch
COPY . ./
RUN /opt/pluribus/bin/pip install --constraint constraints.txt .

FROM python:3.11-slim
# On a GPU, Triton builds what launches its kernels with a C compiler.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/pluribus /opt/pluribus
ENV PATH=/opt/pluribus/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/tmp/huggingface \
    TRITON_CACHE_DIR=/tmp/triton
WORKDIR /tmp
USER 10001
EXPOSE 8020
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8020/readyz', timeout=2)"]
ENTRYPOINT ["pluribus"]
CMD ["serve", "server.host=0.0.0.0", "server.allow_remote=true"]
