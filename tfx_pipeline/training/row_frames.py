"""The TensorFlow ops that pack rows into Zstandard frames: built by one command, then loaded.

They are one small C++ file, ``ops/row_frames.cc``, and need a C++ compiler and nothing else: the
Zstandard that they call is the one within TensorFlow's own library. Whoever trains with
``transmission: none`` or ``bf16`` needs none of this.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tfx_pipeline.errors import PipelineError, SettingsError

BUILD_COMMAND = "laser-pipeline build-ops"
_SOURCE = Path(__file__).parent / "ops" / "row_frames.cc"
_FLAGS = ("-shared", "-fPIC", "-O3", "-std=c++17", "-Wall")


@cache
def ops_version() -> str:
    """Names what is built: a hash of the source, TensorFlow's version and the processor's kind."""
    parts = (metadata.version("tensorflow"), platform.system(), platform.machine())
    return hashlib.sha256(_SOURCE.read_bytes() + " ".join(parts).encode()).hexdigest()[:12]


def library_path() -> Path:
    """Where the library of this version lies once it is built."""
    return _SOURCE.with_name(f"row_frames-{ops_version()}.so")


def built_ops() -> str:
    """``ops_version`` if the library is built, else ""."""
    return ops_version() if library_path().is_file() else ""


def build_ops() -> Path:
    """Compile the ops, unless this version of them is there; about a second of processor time.

    Raises:
        PipelineError: Says what is missing, or what the compiler said.
    """
    path = library_path()
    if path.is_file():
        return path
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or not shutil.which(compiler):
        raise PipelineError(
            f"no C++ compiler ({compiler or 'neither g++ nor clang++ is on the PATH'}): install "
            "one (Debian: apt-get install g++), or name it in CXX; training needs none with "
            "`transmission: none` or `bf16`"
        )
    import tensorflow as tf  # slow to import

    try:
        folder = tempfile.mkdtemp(dir=path.parent)
    except OSError as error:
        raise PipelineError(
            f"{path.parent} cannot be written ({error.strerror}): give `{BUILD_COMMAND}` as the "
            "user who installed this package"
        ) from error
    try:
        fresh = Path(folder) / path.name
        paths = [str(_SOURCE), "-o", str(fresh)]
        compiling, linking = tf.sysconfig.get_compile_flags(), tf.sysconfig.get_link_flags()
        command = [compiler, *_FLAGS, *compiling, *paths, *linking, *_NOTHING_UNDEFINED]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise PipelineError(
                f"{compiler} cannot build {_SOURCE.name}: {_first_error(said.stderr)}"
            )
        fresh.replace(path)  # whole or not at all, whoever else builds it now
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def load_if_built() -> str:
    """Make the ops known to TensorFlow in this process if they are built; ``built_ops``."""
    if built_ops():
        load_ops()
    return built_ops()


@cache
def load_ops() -> Any:
    """The module with ``laser_pack_rows`` and ``laser_unpack_rows``.

    Raises:
        SettingsError: They are not built.
    """
    check_ops_are_built()
    import tensorflow as tf

    return tf.load_op_library(str(library_path()))


def check_ops_are_built() -> None:
    """Raise unless the ops of this version are built.

    Raises:
        SettingsError: Names the command.
    """
    if not built_ops():
        raise SettingsError(
            "section training: transmission 'zstd' and 'bf16+zstd' need TensorFlow ops that are "
            f"not built here: give `{BUILD_COMMAND}` (it needs a C++ compiler, and takes seconds), "
            "or choose 'none' or 'bf16'"
        )


def _first_error(text: str) -> str:
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else "no word")


# A symbol that TensorFlow's library lacks is an error of the build, not of the first step.
_NOTHING_UNDEFINED = () if platform.system() == "Darwin" else ("-Wl,--no-undefined",)
