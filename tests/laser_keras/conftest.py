"""Makes the helper modules of this folder importable and keeps the machine's load low."""

import gc
import os
import sys
from collections.abc import Iterator

sys.path.insert(0, os.path.dirname(__file__))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Hundreds of small programs: compiling takes far longer than running them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# And many are the same in several files, each of which forgets them at its end.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(sys.prefix, "jax-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(1)
elif keras.backend.backend() == "torch":
    import torch

    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Dropout draws from Keras's global state: no test's outcome may depend on the draw."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_released() -> Iterator[None]:
    """Every compiled program keeps memory maps, of which a process may have only so many."""
    yield
    if keras.backend.backend() == "jax":
        import jax
        import layer_tools

        layer_tools._COMPILED.clear()
        jax.clear_caches()
        gc.collect()
