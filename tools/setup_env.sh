#!/usr/bin/env bash
# Creates a virtual environment with exactly the packages of a lock file (or the given requirements).
#
#   tools/setup_env.sh pipeline                       .venv from requirements/pipeline.lock (Python 3.10)
#   tools/setup_env.sh light NAME PYTHON REQ [REQ..]  .venv-NAME with these requirements and this package
#
# Does nothing when the environment is up to date. Needs any Python 3 with venv, and Python 3.10 for the pipeline.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

# A version manager's shim may exist without working, so every candidate is run before it is chosen.
works() { "$@" --version >/dev/null 2>&1; }

find_uv() {
  local candidate
  for candidate in "${UV:-uv}" .venv-tools/bin/uv; do
    if works "$candidate"; then echo "$candidate"; return; fi
  done
  local python
  for python in python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
    "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1 || continue
    say "uv not found: installing it into .venv-tools" >&2
    "$python" -m venv .venv-tools >&2 && .venv-tools/bin/python -m pip install --quiet --disable-pip-version-check uv >&2 || continue
    echo .venv-tools/bin/uv
    return
  done
  fail "uv is missing and could not be installed. Install it with 'python3 -m pip install uv' and try again."
}

is_version() { "$1" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$2')" >/dev/null 2>&1; }

find_python() {  # $1: version such as 3.10
  local candidate
  for candidate in "python$1" \
      "$("$uv" python find --system --no-python-downloads "$1" 2>/dev/null || true)" \
      "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python \
      /usr/local/bin/"python$1" /usr/bin/"python$1" /opt/homebrew/bin/"python$1"; do
    if [ -n "$candidate" ] && is_version "$candidate" "$1"; then echo "$candidate"; return; fi
  done
  # Last resort: uv's own build of CPython, where its download can be reached.
  if "$uv" python install --quiet "$1" >/dev/null 2>&1; then "$uv" python find --system "$1"; return; fi
  return 1
}

uv=$(find_uv)
# Trust what this machine trusts, a company proxy's certificate too (older versions of uv know the second name only).
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-true}" UV_NATIVE_TLS="${UV_NATIVE_TLS:-true}"
mode=${1:-pipeline}

if [ "$mode" = pipeline ]; then
  venv=.venv
  stamp=$(cat requirements/pipeline.lock setup.py tools/setup_env.sh | cksum)
  version=3.10
else
  name=$2; version=$3; shift 3
  venv=.venv-$name
  stamp=$(printf '%s\n' "$version" "$@" | cat - setup.py tools/setup_env.sh | cksum)
fi
if [ "$(cat "$venv/.stamp" 2>/dev/null || true)" = "$stamp" ]; then exit 0; fi

python=$(find_python "$version") || fail "no Python $version found. Install it (for instance 'uv python install $version', 'pyenv install $version' or your system's python$version package) and try again."
say "environment $venv with $("$python" --version 2>&1): this takes about a minute the first time"
started=$SECONDS
rm -rf "$venv"
"$uv" venv --quiet --python "$python" "$venv"
# uv does not read pip's setting for folders of extra wheels.
if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"; fi
if [ "$mode" = pipeline ]; then
  "$uv" pip sync --quiet --python "$venv/bin/python" requirements/pipeline.lock
  "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --config-settings editable_mode=compat --editable .
else
  "$uv" pip install --quiet --python "$venv/bin/python" --config-settings editable_mode=compat --editable "$@"
fi
printf '%s\n' "$stamp" > "$venv/.stamp"
say "environment $venv ready in $((SECONDS - started)) s"
