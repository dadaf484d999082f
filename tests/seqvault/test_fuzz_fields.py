"""Single fields of real files changed, every checksum right: refused, or harmless, no crash.

The long run is ``python -m seqvault.testing.fuzz_run --rounds 5000``.
"""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from seqvault import SeqVault, errors
from seqvault.codec.primitives import checksum
from seqvault.read.packed_answer import MAGIC, unpack_batch
from seqvault.testing.field_mutations import KINDS, footer_arrays, with_footer
from seqvault.testing.fuzz_run import COUNTS, make_store

USERS = [*COUNTS, 7, 8]
CHILD = """
from seqvault.testing.fuzz_run import fuzz_run
import json
print(json.dumps(fuzz_run(rounds={rounds}, seed={seed})))
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("fields") / "vault"
    make_store(str(path))
    return path


def test_changed_fields_are_refused_or_harmless_and_never_a_crash():
    run = subprocess.run(
        [sys.executable, "-c", CHILD.format(rounds=40 * len(KINDS), seed=7)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert run.returncode == 0, f"{run.returncode}: {run.stderr[-2000:]}"
    for kind, outcomes in json.loads(run.stdout).items():
        assert set(outcomes) <= {"", "DamagedFileError", "NewerFormatError"}, kind
        assert outcomes["DamagedFileError"] >= 10, (kind, outcomes)


def damaged(sound, tmp_path, change):
    """The store with its first segment, the only one of user 3, changed."""
    path = shutil.copytree(sound, tmp_path / "vault")
    name = path / "segments" / sorted(os.listdir(path / "segments"))[0]
    name.write_bytes(change(name.read_bytes()))
    return path


@pytest.mark.parametrize("place", [0, 1, 2, 3, 5])  # the other one has one event
@pytest.mark.parametrize("less", [1, 39, -1])
def test_a_footer_that_counts_other_events_than_the_record_holds(sound, tmp_path, place, less):
    """Room for a ragged answer is taken by the footer: fewer there once overran it."""

    def change(content):
        arrays = footer_arrays(content)
        arrays[2][place] -= less
        arrays[2][(place + 1) % len(arrays[2])] += less  # the sum is as before
        arrays[4] = np.maximum(arrays[4], arrays[2])
        return with_footer(content, arrays)

    path = damaged(sound, tmp_path, change)
    for call in ("read", "read_ragged", "read_packed"):
        with (
            pytest.raises(errors.DamagedFileError, match="segments/"),
            SeqVault.open(path, read_only=True) as vault,
        ):
            getattr(vault, call)(USERS, None, 12_000)


@pytest.mark.parametrize("at, value, says", [(24, 1, "schema is number 1"), (12, 9, "9 columns")])
def test_a_header_that_no_schema_of_the_store_fits(sound, tmp_path, at, value, says):
    def change(content):
        head = bytearray(content[:28])
        head[at : at + 4] = value.to_bytes(4, "little")
        return bytes(head) + checksum(head).to_bytes(4, "little") + content[32:]

    path = damaged(sound, tmp_path, change)
    for read_only in (True, False):
        with pytest.raises(errors.DamagedFileError, match=says):
            SeqVault.open(path, read_only=read_only)


@pytest.mark.parametrize(
    "array, values",
    [(0, [5, 0]), (0, [-1, 1 << 62]), (1, [-16]), (1, [1 << 62, 1 << 62]), (1, [0]), (2, [-1]),
     (2, [1 << 31]), (2, [0]), (3, [3]), (3, [-1]), (4, [0]), (2, [-(1 << 63)]), (1, [-(1 << 63)])],
)  # fmt: skip
def test_a_footer_of_impossible_numbers(sound, tmp_path, array, values):
    def change(content):
        arrays = footer_arrays(content)
        arrays[array][1 : 1 + len(values)] = values
        return with_footer(content, arrays)

    with pytest.raises(errors.DamagedFileError, match="footer"):
        SeqVault.open(damaged(sound, tmp_path, change), read_only=True)


@pytest.mark.parametrize("count", [0, 1, 5, 7, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_footer_that_says_another_number_of_records(sound, tmp_path, count):
    path = damaged(sound, tmp_path, lambda data: with_footer(data, footer_arrays(data), count))
    with pytest.raises(errors.DamagedFileError):
        SeqVault.open(path, read_only=True)


def repacked(message, change):
    """A packed answer with another description and a right checksum."""
    start = len(MAGIC) + 4
    size = int.from_bytes(message[start : start + 4], "little")
    told = json.loads(message[start + 4 : start + 4 + size])
    change(told)
    text = json.dumps(told).encode()
    body = len(text).to_bytes(4, "little") + text + message[start + 4 + size :]
    return MAGIC + checksum(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "name, value",
    [("rows", -1), ("rows", 1 << 40), ("records", 1), ("last_n", 0), ("last_n", 1 << 40),
     ("dtypes", ["int64", "int32", "int8", "object"]), ("dtypes", ["int64"]), ("defaults", []),
     ("defaults", [1 << 64, 0, 0, 0]), ("columns_in", [5, 2]), ("columns_in", [5]),
     ("columns_in", [5, -5]), ("columns", [[0, 2, 3, 4], [0, 2, 3, 5]]), ("columns", [[0], [0]]),
     ("columns", [[0, 2, 3, 4], [0, 2, 3, -2]]), ("names", ["a", "b"]), ("rows", None),
     ("oldest", "long ago"), ("columns", 3)],
)  # fmt: skip
def test_a_packed_answer_whose_description_is_wrong(sound, name, value):
    with SeqVault.open(sound, read_only=True) as vault:
        message = vault.read_packed(USERS, None, 300)
        expected = vault.read(USERS, None, 300)
    np.testing.assert_array_equal(
        unpack_batch(repacked(message, lambda told: None))["item_id"], expected["item_id"]
    )
    wrong = repacked(message, lambda told: told.update({name: value}))
    with pytest.raises(errors.DamagedFileError, match="packed answer is damaged"):
        unpack_batch(wrong)


def test_a_packed_answer_with_changed_numbers_is_refused_or_of_the_right_shape(sound):
    with SeqVault.open(sound, read_only=True) as vault:
        message = vault.read_packed(USERS, None, 300)
    start = len(MAGIC) + 4
    size = int.from_bytes(message[start : start + 4], "little")
    told = json.loads(message[start + 4 : start + 4 + size])
    arrays = start + 4 + size
    numbers = 4 * told["rows"] + 2 * told["records"]
    refused = 0
    for seed in range(300):
        rng = random.Random(seed)
        data = bytearray(message)
        at = arrays + 8 * rng.randrange(numbers)
        old = int.from_bytes(data[at : at + 8], "little", signed=True)
        fresh = rng.choice((-1, 0, old + 1, old - 1, old + 8, 1 << 31, 1 << 62, -(1 << 63)))
        data[at : at + 8] = (fresh & (1 << 64) - 1).to_bytes(8, "little")
        data[start - 4 : start] = checksum(data[start:]).to_bytes(4, "little")
        try:
            batch = unpack_batch(bytes(data))
            assert batch["item_id"].shape == (len(USERS), 300)
            assert ((batch.lengths >= 0) & (batch.lengths <= 300)).all()
        except errors.DamagedFileError:
            refused += 1
    assert refused >= 100
