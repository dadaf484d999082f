# The image of the pipeline's pods and Beam workers: exactly the packages of the lock file.
FROM python:3.10-slim
WORKDIR /app
RUN pip install --no-cache-dir uv
COPY requirements/pipeline.lock requirements/pipeline.lock
RUN uv pip install --system --no-cache -r requirements/pipeline.lock
COPY setup.py pyproject.toml README.md LICENSE NOTICE ./
COPY laser_keras laser_keras
COPY seqvault seqvault
COPY laser_features laser_features
COPY components components
COPY tfx_pipeline tfx_pipeline
COPY serving serving
RUN uv pip install --system --no-cache --no-deps .
ENV NUMBA_CACHE_DIR=/tmp/numba TF_CPP_MIN_LOG_LEVEL=3 TF_CPU_ALLOCATOR_USE_BFC=true
