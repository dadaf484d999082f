# %% [markdown]
# # Export, serve, ask
#
# A ranker becomes a SavedModel, a server loads it, and one HTTP request gets scores. The server
# is the embedded one (`pip install "laser-ranking[serving]"`); TensorFlow Serving takes the same
# folder and answers the same request.
#
#     python examples/export_and_serve.py

# %%
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"  # a SavedModel is TensorFlow's

import keras
import numpy as np
from movie_log import read_log, requests_of
from train_on_raw_ids import make_ranker

# %% [markdown]
# ## Export
#
# `None` stands for what may vary: the number of requests in a call and of candidates in a request.
# The history's length is fixed; shorter ones are padded with 0, which the embedding reads as the
# mask. Publish under another name and rename: a server must never see half a version.


# %%
def export(ranker: keras.Model, raw: dict[str, np.ndarray], folder: Path) -> None:
    """Write the ranker as version 1 of a model below ``folder``."""
    length = raw["history_movie"].shape[1]
    shapes = {name: (None, None if name.startswith("candidate") else length) for name in raw}
    signature = {
        name: keras.InputSpec(shape=shapes[name], dtype="int32", name=name) for name in raw
    }
    ranker.export(str(folder / "unfinished"), input_signature=[signature], verbose=False)
    (folder / "unfinished").rename(folder / "1")


# %% [markdown]
# ## Serve
#
# The flags are TensorFlow Serving's. `auto` takes a free port, and the ready file says which.


# %%
def serve(folder: Path) -> tuple[subprocess.Popen, str]:
    """Start a model server; returns its process and its REST address."""
    ready = folder / "ready.json"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "serving.cli", "model-server"),
            "--model_name=movies",
            f"--model_base_path={folder}",
            "--port=0",
            "--rest_api_port=auto",
            f"--ready_file={ready}",
        ],
        stderr=subprocess.DEVNULL,
    )
    while not ready.exists():
        if server.poll() is not None:
            raise RuntimeError(f"the model server ended with exit code {server.returncode}")
        time.sleep(0.1)
    return server, json.loads(ready.read_text())["rest"]


def ask(address: str, request: dict[str, np.ndarray]) -> list[float]:
    """Scores of one request's candidates."""
    body = json.dumps({"instances": [{name: row.tolist() for name, row in request.items()}]})
    url = f"http://{address}/v1/models/movies:predict"
    for attempt in range(100):
        try:
            with urllib.request.urlopen(url, body.encode(), timeout=30) as reply:
                return json.load(reply)["predictions"][0]
        except urllib.error.HTTPError as error:
            if attempt == 99:  # until then the first version is still being loaded
                raise RuntimeError(error.read().decode()) from error
            time.sleep(0.2)
    raise AssertionError


def main() -> float:
    """Export, serve and ask; returns the largest difference from the ranker's own scores."""
    keras.utils.set_random_seed(1)
    log = read_log()
    raw, _ = requests_of(log)
    ranker = make_ranker(log)  # train it first, as in train_on_raw_ids.py
    ranker({name: values[:1] for name, values in raw.items()})

    request = {name: values[-1] for name, values in raw.items()}
    request["candidate_movie"] = np.array([5, 17, 42, 80], "int32")  # any number of candidates
    request["candidate_genre"] = np.array([5, 5, 6, 2], "int32")
    with tempfile.TemporaryDirectory() as folder:
        export(ranker, raw, Path(folder))
        server, address = serve(Path(folder))
        try:
            scores = ask(address, request)
        finally:
            server.terminate()
            server.wait()
    for place in np.argsort(scores)[::-1]:
        print(f"movie {request['candidate_movie'][place]:3}  {scores[place]:.4f}")
    own = ranker({name: row[None] for name, row in request.items()})
    return float(np.abs(keras.ops.convert_to_numpy(own)[0] - scores).max())


# %% [markdown]
# In production the client doesn't send histories: the rank gateway reads them from SeqVault and
# asks the model server (`laser-serving start`, see `docs/serving.md`).

# %%
if __name__ == "__main__":
    print(f"largest difference from the ranker's own scores: {main():.1e}")
