#!/usr/bin/env bash
# Runs the steps of the pipeline's image without docker: its packages in an empty environment, the
# files that it copies and no others, and then what its pods run first.
#
#   tools/try_image.sh tfx_pipeline/deploy/pipeline.Dockerfile
set -euo pipefail
cd "$(dirname "$0")/.."
dockerfile=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uv=$PWD/.venv-tools/bin/uv
[ -x "$uv" ] || uv=uv

echo "== lint"
for file in "$dockerfile" serving/deploy/*.Dockerfile .devcontainer/Dockerfile; do
  .venv/bin/hadolint --failure-threshold warning "$file"
done
echo "== files of $dockerfile"
grep '^COPY ' "$dockerfile" | grep -v -- '--from=' | while read -r _ sources; do
  set -- $sources
  target=$folder/app/${!#}
  for source in "${@:1:$#-1}"; do
    mkdir -p "$(dirname "$folder/app/$source")"
    cp -r "$source" "$folder/app/$source"
  done
  [ -e "$target" ] || { echo "COPY $sources: nothing at $target" >&2; exit 1; }
done
echo "== packages of requirements/image.lock"
"$uv" venv --quiet --python .venv/bin/python "$folder/env"
"$uv" pip install --quiet --python "$folder/env/bin/python" -r "$folder/app/requirements/image.lock"
cd "$folder/app"
"$uv" pip install --quiet --python "$folder/env/bin/python" --no-deps .
echo "== what pods run"
cd "$folder"
export NUMBA_CACHE_DIR=$folder/.numba TF_CPP_MIN_LOG_LEVEL=3 PATH=$folder/env/bin:$PATH
seqvault warm-up >/dev/null
laser-pipeline --version
laser-serving --version
python -W ignore -m tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor --help >/dev/null || [ $? -eq 1 ]
python -W ignore -c 'import apache_beam.runners.worker.sdk_worker_main, tfx_pipeline.training.run_fn, components.atomic_pusher'
if python -c 'import pytest' 2>/dev/null; then echo "pytest is in the image" >&2; exit 1; fi
echo "== fine"
