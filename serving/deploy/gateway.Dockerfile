# The gateway alone: no TensorFlow, which only the model server needs.
FROM python:3.12-slim
WORKDIR /app
COPY setup.py pyproject.toml README.md LICENSE NOTICE ./
COPY laser_keras laser_keras
COPY seqvault seqvault
COPY laser_features laser_features
COPY serving serving
RUN pip install --no-cache-dir ".[seqvault]" "aiohttp>=3.9" "pyyaml>=6.0"
USER nobody
ENV NUMBA_CACHE_DIR=/tmp/numba
EXPOSE 8080
ENTRYPOINT ["laser-serving", "gateway"]
