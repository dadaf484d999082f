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

install_uv() {  # $@: options of pip
  local python
  for python in python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
    "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1 || continue
    say "uv not found: installing it into .venv-tools" >&2
    # Where Python has a pip of its own, it finds out sooner than a new environment's whether there is a network.
    local from=(uv)
    if works "$python" -m pip; then
      if ! "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
          --dest .venv-tools/wheels "$@" uv >&2; then rm -rf .venv-tools; return 1; fi
      from=(--no-index .venv-tools/wheels/uv-*)
    fi
    "$python" -m venv .venv-tools >&2 || continue
    .venv-tools/bin/python -m pip install --quiet --disable-pip-version-check "$@" "${from[@]}" >&2 && return
    rm -rf .venv-tools
    return 1
  done
  return 1
}

find_uv() {  # $@: options of pip
  local candidate
  for candidate in "${UV:-uv}" .venv-tools/bin/uv; do
    if works "$candidate"; then echo "$candidate"; return; fi
  done
  if install_uv "$@"; then echo .venv-tools/bin/uv; fi
}

is_version() { "$1" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$2')" >/dev/null 2>&1; }

find_python() {  # $1: version such as 3.10
  local candidate
  for candidate in "${PYTHON:-}" "python$1" \
      "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python \
      /usr/local/bin/"python$1" /usr/bin/"python$1" /opt/homebrew/bin/"python$1"; do
    if [ -n "$candidate" ] && is_version "$candidate" "$1"; then echo "$candidate"; return; fi
  done
  [ -n "$uv" ] || return 1
  candidate=$("$uv" python find --system --no-python-downloads "$1" 2>/dev/null || true)
  if [ -n "$candidate" ] && is_version "$candidate" "$1"; then echo "$candidate"; return; fi
  # Last resort: uv's own build of CPython, where its download can be reached.
  if RES_OPTIONS=$impatient UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-5} UV_HTTP_RETRIES=${UV_HTTP_RETRIES:-0} \
      "$uv" python install --quiet "$1" >/dev/null 2>&1; then "$uv" python find --system "$1"; return; fi
  return 1
}

no_python() {  # $1: version
  printf '[setup] %s\n' >&2 \
    "error: no Python $1 found here, and none could be downloaded. Three ways out:" \
    "  1. install it: your system's python$1 package, 'pyenv install $1', or 'conda create -n py$1 python=$1'." \
    "     It is found on PATH and in ~/.pyenv; another place is named by PYTHON=/path/to/python$1 make ..." \
    "  2. let uv download it through a proxy (HTTPS_PROXY) or from a mirror (UV_PYTHON_INSTALL_MIRROR)." \
    "  3. use a container that has it: docker build -t laser-dev -f .devcontainer/Dockerfile . &&" \
    "     docker run -it --rm -v \"\$PWD\":/workspace laser-dev make demo"
  exit 1
}

# Where no Python can be had, the answer comes within seconds, even if the network swallows what is sent to it:
# nothing waits long, or twice; RES_OPTIONS bounds name servers, which the programs' own timeouts leave out.
# With a Python in hand there is time to be patient.
impatient='timeout:1 attempts:1'
uv=$(RES_OPTIONS=$impatient find_uv --timeout 2 --retries 0)
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

python=$(find_python "$version") || no_python "$version"
[ -n "$uv" ] || uv=$(find_uv)
[ -n "$uv" ] || fail "uv is missing and could not be installed. Install it with 'python3 -m pip install uv' and try again."
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
