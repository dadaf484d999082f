#!/usr/bin/env bash
# Builds sdist and wheel into dist/, checks their metadata, and installs the wheel into empty environments.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup_env.sh light package 3.10 . 'build[uv]' twine
tools=$PWD/.venv-package/bin
# uv does not read pip's setting for folders of extra wheels.
if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"; fi

rm -rf dist build
"$tools/python" -m build --installer uv --outdir dist . >/dev/null
"$tools/twine" check --strict dist/*
wheel=$(echo "$PWD"/dist/*.whl)

# Away from the sources, so that only what is installed can be imported.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

try() {  # $1: extra; $2: packages beside it; the rest: commands of an environment with these alone
  local extra=$1 beside=$2 command; shift 2
  rm -rf empty && "$tools/uv" venv --quiet --python "$tools/python" empty
  # shellcheck disable=SC2086
  "$tools/uv" pip install --quiet --python empty/bin/python "$wheel$extra" $beside
  for command in "$@"; do
    printf '[package] laser-ranking%s: %s\n' "$extra" "$command"
    PATH=$PWD/empty/bin:$PATH bash -c "$command" >/dev/null
  done
}

layers='import numpy as np, laser_keras as k; k.LaserEncoder()(np.ones((1, 2, 64)), np.ones((1, 60, 64)))'
try '' jax 'seqvault --version' 'laser-pipeline --version' 'laser-serving --version' \
  "KERAS_BACKEND=jax python -c '$layers'"
# Its kernels compile at the first append, which is the store's own tests' affair.
try '[seqvault]' '' 'seqvault init vault --field item_id:int64' \
  'python -c "from seqvault import SeqVault, connect"'
