"""An answer stays as it is for as long as anything of it is held, however it is held."""

import threading

import numpy as np
import pyarrow as pa
import pytest

from seqvault import SeqVault
from seqvault.testing.random_workload import NOW, SCHEMA

USERS, LENGTH = 8, 300


@pytest.fixture
def vault(tmp_path):
    count = USERS * LENGTH
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as store:
        store.append(
            {
                "user_id": np.arange(count) % USERS,
                "timestamp": NOW + np.arange(count),
                "item_id": np.arange(count),
                "action": (np.arange(count) % 100).astype(np.int8),
            }
        )
        store.merge()
        yield store


WAYS = {
    "the batch": lambda batch: batch,
    "a column": lambda batch: batch["item_id"],
    "a part of a column": lambda batch: batch["item_id"][1:3, 5:9],
    "a reversed view": lambda batch: batch["item_id"][:, ::-1],
    "a flat view": lambda batch: batch["item_id"].reshape(-1),
    "a view as bytes": lambda batch: batch["item_id"].view(np.uint8),
    "a memory view": lambda batch: memoryview(batch["item_id"]),
    "a frame of the memory": lambda batch: np.frombuffer(batch["item_id"], np.int64),
    "an Arrow array": lambda batch: pa.array(batch["item_id"].reshape(-1)),
    "an Arrow buffer": lambda batch: pa.py_buffer(batch["item_id"]),
    "the protocol of tensors": lambda batch: np.from_dlpack(batch["item_id"]),
    "an iterator over rows": lambda batch: iter(batch["item_id"]),
    "an object of another library": lambda batch: type(
        "Tensor", (), {"__array_interface__": batch["item_id"].__array_interface__, "of": batch}
    ),
}


def values_of(held) -> list[int]:
    if hasattr(held, "__array_interface__") and isinstance(held, type):
        return np.asarray(held()).reshape(-1).tolist()
    if hasattr(held, "columns"):
        return [int(v) for name in held.columns for v in held[name].reshape(-1)]
    if isinstance(held, pa.Buffer):
        return np.frombuffer(held, np.int64).tolist()
    if isinstance(held, pa.Array):
        return held.to_pylist()
    return np.asarray(held).reshape(-1).tolist()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "an iterator over rows"])
def test_later_reads_do_not_touch_what_is_held(vault, way):
    held = WAYS[way](vault.read([0, 1, 2, 3], before=None, last_n=LENGTH))
    expected = values_of(held)
    for _ in range(3):
        vault.read([7, 6, 5, 4], before=None, last_n=LENGTH)
    assert values_of(held) == expected


def test_an_iterator_over_rows_goes_on_over_its_own_answer(vault):
    rows = iter(vault.read([0, 1, 2, 3], before=None, last_n=LENGTH)["item_id"])
    first = next(rows)
    vault.read([7, 6, 5, 4], before=None, last_n=LENGTH)
    assert [int(row[0]) % USERS for row in (first, *rows)] == [0, 1, 2, 3]


def test_answers_of_many_reads_may_all_be_held(vault):
    held = [vault.read([user], before=None, last_n=LENGTH) for user in range(USERS)]
    for user, batch in enumerate(held):
        assert (batch["item_id"][0] % USERS == user).all()


def test_an_answer_read_in_one_thread_is_held_in_another(vault):
    held, faults = {}, []

    def work(user: int) -> None:
        for _ in range(200):
            mine = vault.read([user], before=None, last_n=LENGTH)["item_id"]
            held[user] = mine  # the one before is let go here, and maybe looked at there
            for other, theirs in list(held.items()):
                if not (theirs % USERS == other).all():
                    faults.append((user, other))

    threads = [threading.Thread(target=work, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
