"""Ordinary reads go by addresses of arrays: they must be those of the arrays in force."""

import gc
import weakref

import numpy as np
import pytest
from numba import njit

from seqvault import SeqVault
from seqvault.codec.bundles import bundle, int32_part, int64_part, uint8_part, uint64_part
from seqvault.disk.files import Files
from seqvault.read.found import of_numbers
from seqvault.testing.random_workload import NOW, SCHEMA


@njit
def parts_of(words):
    return (
        int64_part(words, 0).copy(),
        int32_part(words, 1).copy(),
        uint64_part(words, 2).copy(),
        uint8_part(words, 3).copy(),
    )


def test_a_kernel_sees_the_parts_of_a_bundle():
    arrays = (
        np.array([-(1 << 40), 3], np.int64),
        np.array([7, -7, 0], np.int32),
        np.array([1 << 63], np.uint64),
        np.arange(5, dtype=np.uint8),
    )
    for part, array in zip(parts_of(bundle(arrays)), arrays, strict=True):
        np.testing.assert_array_equal(part, array)
        assert part.dtype == array.dtype


def test_a_bundle_takes_no_array_with_gaps():
    with pytest.raises(ValueError, match="contiguous"):
        bundle([np.arange(6)[::2]])


class Watched(Files):
    """A file layer that sees each call: reads go the long way, by arrays."""

    def preadv(self, fd, out, offset):
        return super().preadv(fd, out, offset)


def test_reads_follow_the_store_as_its_arrays_grow(tmp_path):
    """After every append and merge that replaces arrays, both ways of reading agree."""
    rng = np.random.default_rng(4)
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as store:
        users = 0
        for turn in range(9):
            users += 150  # past each doubling of the index and of the memtable
            count = 700
            store.append(
                {
                    "user_id": rng.integers(0, users, count),
                    "timestamp": NOW + 1000 * turn + np.arange(count),
                    "item_id": rng.integers(0, 1000, count),
                    "action": rng.integers(0, 5, count).astype(np.int8),
                }
            )
            asked = np.arange(users)
            got = store.read(asked, before=None, last_n=12)
            again = store.read(asked, before=None, last_n=12, version=got.version)  # by arrays
            with SeqVault.open(tmp_path / "vault", read_only=True, files=Watched()) as plain:
                expected = plain.read(asked, before=None, last_n=12)
            for answer in (got, again):
                np.testing.assert_array_equal(answer.lengths, expected.lengths)
                np.testing.assert_array_equal(answer.version, expected.version)
                for name, values in expected.columns.items():
                    np.testing.assert_array_equal(answer[name], values)
            if turn % 3 == 2:
                store.merge()


@pytest.mark.parametrize("fields", [None, ["action"], []])
def test_answers_are_ordinary_arrays(tmp_path, fields):
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as store:
        batch = store.read([1, 2, 3], before=None, last_n=5, fields=fields)
        assert list(batch.columns) == list(store.schema.select(fields))
        for name, values in batch.columns.items():
            assert type(values) is np.ndarray and values.shape == (3, 5)
            assert values.dtype == store.schema.dtype(name) and not values.any()
            assert values.flags.c_contiguous and values.flags.writeable and values.flags.aligned


def test_a_loop_that_holds_one_answer_goes_back_and_forth_between_two_places(tmp_path):
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as store:
        places, held = [], None
        for _ in range(6):
            batch = store.read(np.arange(64), before=None, last_n=100)
            places.append(batch["item_id"].ctypes.data)
            held = batch
        assert held is not None and len(set(places)) == 2
        assert places[0] != places[1]


def test_what_is_known_of_segments_is_found_by_their_numbers():
    known = {7: 70, 3: 30, 1 << 40: 5}
    numbers = np.array([3, 1 << 40, 7, 7, 3])
    expected = [known[number] for number in numbers.tolist()]
    assert of_numbers(numbers, known).tolist() == expected
    assert of_numbers(numbers[:0], {}).tolist() == []


def test_a_store_that_is_only_written_lets_go_of_what_merges_replaced(tmp_path):
    rows = {
        "user_id": np.repeat(np.arange(4), 100),
        "timestamp": NOW + np.arange(400),
        "item_id": np.arange(400),
        "action": np.zeros(400, np.int8),
    }
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as store:
        store.append(rows)
        store.merge()
    with SeqVault.open(tmp_path / "vault") as store:
        first = [weakref.ref(segment) for segment in store._state.segments.values()]
        numbers = set(store._state.segments)
        for _ in range(6):  # sooner or later every record is written anew
            store.append(rows)
            store.merge()
        assert first and not numbers & set(store._state.segments)
        gc.collect()
        assert all(one() is None for one in first)
