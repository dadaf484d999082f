"""Bad input: a typed error that says what was wrong, and a store that reads on as before.

One test, or one row, for each entry of the list of bad input that the store must withstand.
"""

import errno
import time

import numpy as np
import pyarrow as pa
import pytest

import seqvault
from seqvault import Schema, SeqVault, errors
from seqvault.disk.files import Files

SCHEMA = Schema.from_arrow(
    pa.schema([("item_id", pa.int64()), ("scenario", pa.int8()), ("score", pa.float32())])
)
NOW = 1_700_000_000_000
GOOD = {
    "user_id": [1, 1],
    "timestamp": [NOW, NOW + 1],
    "item_id": [5, 6],
    "scenario": [0, 1],
    "score": [0.5, 1.5],
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vault"


@pytest.fixture
def vault(path):
    with SeqVault.open(path, schema=SCHEMA) as store:
        store.append(GOOD)
        store.merge()
        store.append({**GOOD, "timestamp": [NOW + 2, NOW + 3], "item_id": [7, 8]})
        yield store


def assert_unharmed(path, store=None):
    """All that was acknowledged reads as before, here, beside, and after a new start."""
    stores = [SeqVault.open(path, read_only=True)] + ([store] if store else [])
    for one in stores:
        batch = one.read([1], before=None, last_n=9)
        assert batch["item_id"][0].tolist() == [8, 7, 6, 5, 0, 0, 0, 0, 0]
        one.verify()
    stores[0].close()


def test_an_unknown_user_has_an_empty_history(vault):
    batch = vault.read([99, 1, -1], before=None, last_n=2)
    assert batch.lengths.tolist() == [0, 2, 0]
    assert not batch["item_id"][0].any()
    assert len(vault.read([], before=None, last_n=2)) == 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"item": [1, 2]}, errors.UnknownFieldError, "'item' that the schema lacks.*item_id"),
        ({"score": None}, errors.UnknownFieldError, "no column 'score'.*need"),
        ({"item_id": ["a", "b"]}, errors.WrongTypeError, "item_id.*expected int64"),
        ({"item_id": [1.5, 2]}, errors.WrongTypeError, "item_id.*fractions"),
        ({"item_id": [1, None]}, errors.WrongTypeError, "item_id"),
        ({"item_id": [1, float("nan")]}, errors.WrongTypeError, "item_id"),
        ({"user_id": [2**63, 1]}, errors.ValueRangeError, "user_id.*int64 holds"),
        ({"scenario": [0, 128]}, errors.ValueRangeError, "scenario.*128.*-128 to 127"),
        ({"timestamp": [NOW // 1000] * 2}, errors.TimeUnitError, "seconds: multiply by 1000"),
        ({"timestamp": [NOW * 1000] * 2}, errors.TimeUnitError, "micro.*divide"),
        ({"timestamp": [NOW, -1]}, errors.TimeUnitError, "negative"),
        ({"timestamp": [NOW, 2**63 - 1]}, errors.TimeUnitError, "9223372036854775807"),
        ({"item_id": [1]}, errors.InvalidRequestError, "one length"),
        ({"item_id": [[1], [2]]}, errors.InvalidRequestError, "flat"),
    ],
)
@pytest.mark.parametrize("call", ["append", "bulk_load"])
def test_bad_events(vault, path, change, error, says, call):
    given = {name: values for name, values in {**GOOD, **change}.items() if values is not None}
    with pytest.raises(error, match=f"(?s){says}"):
        getattr(vault, call)(given)
    assert_unharmed(path, vault)


def test_events_that_are_no_table(vault, path):
    for nothing in (None, 7, "events", [1, 2]):
        with pytest.raises(errors.WrongTypeError, match="expected an Arrow table"):
            vault.append(nothing)
    assert vault.append({name: [] for name in GOOD}) == 0
    assert_unharmed(path, vault)


def test_unsorted_and_duplicate_events_are_kept_in_order_of_time_and_arrival(vault):
    vault.append({**GOOD, "user_id": [3, 3], "timestamp": [NOW + 5, NOW], "item_id": [1, 2]})
    vault.append({**GOOD, "user_id": [3, 3], "timestamp": [NOW + 5, NOW + 5], "item_id": [1, 1]})
    for _ in range(2):
        batch = vault.read([3], before=None, last_n=5)
        assert batch["item_id"].tolist() == [[1, 1, 1, 2, 0]]
        assert batch["timestamp"][0, :4].tolist() == [NOW + 5] * 3 + [NOW]
        vault.merge()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"before": NOW // 1000}, errors.TimeUnitError, "before.*seconds: multiply by 1000"),
        ({"before": float(NOW)}, errors.WrongTypeError, "before.*int64 milliseconds"),
        ({"before": "now"}, errors.WrongTypeError, "before.*int64 milliseconds"),
        ({"before": [NOW, NOW]}, errors.InvalidRequestError, "one for each of 1 users"),
        ({"last_n": 0}, errors.InvalidRequestError, "at least 1; got 0"),
        ({"last_n": -1}, errors.InvalidRequestError, "at least 1; got -1"),
        ({"last_n": True}, errors.InvalidRequestError, "whole number"),
        ({"last_n": 1 << 30}, errors.LimitError, "limit of 1048576.*ask for less"),
        ({"user_ids": np.zeros(1 << 12, np.int64), "last_n": 1 << 20}, errors.LimitError, "limit"),
        ({"fields": ["item"]}, errors.UnknownFieldError, "'item'.*item_id"),
        ({"user_ids": [1.0]}, errors.WrongTypeError, "user_ids.*int64"),
        ({"user_ids": [[1]]}, errors.InvalidRequestError, "flat list"),
        ({"user_ids": np.array([2**63], np.uint64)}, errors.InvalidRequestError, "beyond int64"),
        ({"actions": [1]}, errors.InvalidRequestError, "no field has the role 'action'"),
        ({"scenarios": ["home"]}, errors.WrongTypeError, "scenarios.*int64"),
        ({"version": [-1]}, errors.InvalidRequestError, "earlier read"),
        ({"version": [1, 1]}, errors.InvalidRequestError, "earlier read"),
    ],
)
def test_bad_reads(vault, path, arguments, error, says):
    with pytest.raises(error, match=f"(?s){says}"):
        vault.read(**{"user_ids": [1], "before": None, "last_n": 5, **arguments})
    assert_unharmed(path, vault)


@pytest.mark.parametrize(
    ("items", "error", "says"),
    [
        ({"value": [1]}, errors.UnknownFieldError, "no column 'item_id'"),
        ({"item_id": ["a"], "value": [1]}, errors.WrongTypeError, "item_id.*int64"),
        ({"item_id": [1], "value": [[1, 2]]}, errors.WrongTypeError, "value.*fixed-size"),
        ({"item_id": [1], "value": [None]}, errors.InvalidRequestError, "missing values|null"),
        ({"item_id": [1, 1], "value": [1, 2]}, errors.InvalidRequestError, "given twice"),
        ({"item_id": [1], "other": [1]}, errors.SchemaError, "same columns"),
        (7, errors.WrongTypeError, "items have type int"),
    ],
)
def test_bad_items(vault, path, items, error, says):
    vault.put_items({"item_id": [5], "value": [50]})
    with pytest.raises((error, errors.WrongTypeError), match=f"(?s){says}"):
        vault.put_items(items)
    assert vault.read_items([5])["value"].tolist() == [50]
    assert_unharmed(path, vault)


def test_a_store_opened_twice_for_writing(vault, path):
    with pytest.raises(errors.StoreLockedError, match="read_only=True") as raised:
        SeqVault.open(path)
    assert raised.value.retryable
    assert_unharmed(path, vault)
    with SeqVault.open(path, read_only=True) as reader:
        for write in (lambda: reader.append(GOOD), reader.merge, lambda: reader.bulk_load(GOOD)):
            with pytest.raises(errors.ReadOnlyError, match="open it without"):
                write()


def test_a_store_of_a_newer_format(vault, path):
    vault.close()
    manifest = path / "MANIFEST"
    content = manifest.read_bytes()
    manifest.write_bytes(b"seqvault 999 " + content.split(b" ", 2)[2])
    for read_only in (False, True):
        with pytest.raises(errors.NewerFormatError, match=r"format 999.*newer"):
            SeqVault.open(path, read_only=read_only)
    manifest.write_bytes(content)
    assert_unharmed(path)


def test_a_damaged_file_names_itself_and_spares_other_users(vault, path):
    vault.append({**GOOD, "user_id": [2, 2]})
    vault.merge()
    newest = max((path / "segments").iterdir())
    content = bytearray(newest.read_bytes())
    users = [1, 2]
    offset = 32 + 40  # within the first record, user 1
    content[offset] ^= 1
    with open(newest, "r+b") as file:
        file.write(bytes(content))
    with pytest.raises(errors.DamagedFileError, match=f"{newest.name}.*Restore"):
        vault.read(users, before=None, last_n=9)
    assert vault.read([2], before=None, last_n=9).lengths.tolist() == [2]
    with pytest.raises(errors.DamagedFileError, match=newest.name):
        vault.verify()
    content[offset] ^= 1
    newest.write_bytes(bytes(content))
    assert_unharmed(path, vault)


class FullDisk(Files):
    """A real disk that can have no room."""

    full = False

    def pwrite(self, fd, data, offset):
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().pwrite(fd, data, offset)


def test_a_full_disk(path):
    disk = FullDisk()
    with SeqVault.open(path, schema=SCHEMA, files=disk) as store:
        store.append(GOOD)
        store.append({**GOOD, "timestamp": [NOW + 2, NOW + 3], "item_id": [7, 8]})
        disk.full = True
        for call in (lambda: store.append(GOOD), store.merge, lambda: store.bulk_load(GOOD),
                     lambda: store.put_items({"item_id": [1], "v": [1]})):  # fmt: skip
            with pytest.raises(errors.DiskFullError, match="no room") as raised:
                call()
            assert raised.value.retryable
            assert_unharmed(path, store)
        disk.full = False
        store.append({**GOOD, "user_id": [2, 2]})
        store.merge()
        assert_unharmed(path, store)
    assert_unharmed(path)


def test_a_dead_server_is_a_retryable_error_within_the_deadline():
    begun = time.monotonic()
    with pytest.raises(errors.ServerUnavailableError, match=r"localhost:1.*runs there") as raised:
        seqvault.connect("localhost:1", timeout=2.0).read([1], before=None, last_n=1)
    assert raised.value.retryable
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("where", ["missing", "a file"])
def test_a_place_without_a_store(tmp_path, where):
    target = tmp_path / "place"
    if where == "a file":
        target.write_text("not a store")
    with pytest.raises((errors.StoreNotFoundError, NotADirectoryError)):
        SeqVault.open(target)
    assert target.exists() == (where == "a file")


def test_a_closed_store(path):
    store = SeqVault.open(path, schema=SCHEMA)
    store.close()
    store.close()
    for call in (lambda: store.read([1], before=None, last_n=1), lambda: store.append(GOOD),
                 store.merge, store.stats):  # fmt: skip
        with pytest.raises(errors.StoreClosedError, match="open it again"):
            call()
