# distforge in a container. As you, in this folder, which keeps runs/ and champions/:
#   docker build -t distforge .
#   docker run --rm -it --user "$(id -u):$(id -g)" -v "$PWD:/work" distforge run --config quick
# With a GPU: docker run --gpus all --shm-size 8g … (torch's usual build has CUDA in it; distforge's own kernels need nvcc
# at build time, so plain torch computes in their place here). Without one, torch's CPU build saves gigabytes: give
# --build-arg PIP_EXTRA_INDEX_URL=… the address that pytorch.org names for it.
FROM debian:bookworm-slim AS train

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /distforge
COPY . .
ARG PIP_EXTRA_INDEX_URL=""
RUN make setup
ENV PATH="/distforge/.venv/bin:$PATH"

RUN useradd --create-home distforge && mkdir -p /work/runs && chown -R distforge /work
USER distforge
WORKDIR /work
# Whoever runs it, under a number that has no home here as well.
ENV HOME=/work
ENTRYPOINT ["distforge"]
CMD ["--help"]

# The registry's server; compose.yaml starts it.
FROM train AS registry
USER root
RUN HOME=/root make -C /distforge server && mkdir /registry && chown distforge /registry
USER distforge
EXPOSE 5000
