# The image of the pipeline's pods, of the trainer's servers and workers, and of Beam's workers on
# Flink and Dataflow: exactly the packages of the lock file, none of those for development.
#
#     docker build -f tfx_pipeline/deploy/pipeline.Dockerfile -t laser-ranking .
#     docker build -f tfx_pipeline/deploy/pipeline.Dockerfile -t laser-ranking:gpu --build-arg GPU=1 .

# Beam's own image of the same version: its boot program starts the workers.
FROM apache/beam_python3.10_sdk:2.74.0 AS beam

FROM python:3.10-slim
ARG GPU=0
ARG UV_VERSION=0.13.9
WORKDIR /app
RUN pip install --no-cache-dir "uv==${UV_VERSION}"
COPY requirements/image.lock requirements/image.lock
RUN uv pip install --system --no-cache -r requirements/image.lock
# CUDA's libraries as packages, of the versions that this TensorFlow was built with.
RUN if [ "$GPU" = 1 ]; then uv pip install --system --no-cache "tensorflow[and-cuda]==2.16.2"; fi
COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY setup.py pyproject.toml README.md LICENSE NOTICE ./
COPY laser_keras laser_keras
COPY seqvault seqvault
COPY laser_features laser_features
COPY components components
COPY tfx_pipeline tfx_pipeline
COPY serving serving
RUN uv pip install --system --no-cache --no-deps . \
    && useradd --create-home --uid 10001 laser
# The store's kernels are compiled here, once, and not by the first join of each pod.
ENV NUMBA_CACHE_DIR=/app/.numba TF_CPP_MIN_LOG_LEVEL=3 TF_CPU_ALLOCATOR_USE_BFC=true
RUN seqvault warm-up && chmod -R a+rwX /app/.numba
USER 10001
# Beam's runners start the image with arguments of this program; Kubeflow names its own command.
ENTRYPOINT ["/opt/apache/beam/boot"]
