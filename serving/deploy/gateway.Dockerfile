# The gateway alone: no TensorFlow, which only the model server needs.
FROM python:3.12-slim
WORKDIR /app
COPY setup.py pyproject.toml README.md LICENSE NOTICE ./
COPY laser_keras laser_keras
COPY seqvault seqvault
COPY laser_features laser_features
COPY serving serving
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[gateway]"
# The store's kernels are compiled here, once, and not by the first request of each container.
ENV NUMBA_CACHE_DIR=/app/.numba
RUN seqvault warm-up && chmod -R a+rwX /app/.numba
USER nobody
EXPOSE 8080
ENTRYPOINT ["laser-serving", "gateway"]
