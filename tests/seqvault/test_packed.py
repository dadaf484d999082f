"""Packed answers: what travels must unpack to what a read gives, or be refused."""

import numpy as np
import pyarrow as pa
import pytest

from seqvault import Schema, SeqVault
from seqvault.errors import DamagedFileError, UnknownFieldError
from seqvault.read.packed_answer import unpack_batch

FIELDS = [("item_id", pa.int64()), ("scenario", pa.int8()), ("action", pa.int8())]
SCHEMA = Schema.from_arrow(pa.schema(FIELDS))
LATER = Schema.from_arrow(
    pa.schema([*FIELDS, pa.field("score", pa.float32(), metadata={"seqvault.default": "1.5"})])
)
USERS = [3, 1, 99, 2, -7]


def make_events(seed: int, count: int, schema: Schema) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    events = {
        "user_id": rng.choice([1, 2, 3, -7], count, p=[0.85, 0.1, 0.03, 0.02]),
        "timestamp": rng.integers(0, 5000, count),
        "item_id": rng.integers(-(2**62), 2**62, count),
        "scenario": rng.integers(-1, 3, count).astype(np.int8),
        "action": rng.integers(0, 4, count).astype(np.int8),
    }
    if len(schema.fields) > 3:
        events["score"] = rng.normal(size=count).astype(np.float32)
    return events


@pytest.fixture
def vault(tmp_path):
    """Old and new schema, several extents, a long record, and a tail in memory."""
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        vault.bulk_load(make_events(0, 6000, SCHEMA))
    with SeqVault.open(tmp_path / "vault", schema=LATER) as vault:
        vault.append(make_events(1, 300, LATER))
        vault.merge()
        vault.append(make_events(2, 200, LATER))
        yield vault


def assert_same(got, expected) -> None:
    assert list(got.columns) == list(expected.columns)
    for name, values in expected.columns.items():
        assert got[name].dtype == values.dtype
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    np.testing.assert_array_equal(got.lengths, expected.lengths)
    np.testing.assert_array_equal(got.version, expected.version)
    np.testing.assert_array_equal(got.user_ids, expected.user_ids)


@pytest.mark.parametrize("fields", [None, ["action", "score"], ["item_id", "timestamp"]])
@pytest.mark.parametrize("last_n", [1, 255, 3000, 9000])
def test_unpacks_to_what_a_read_gives(vault, fields, last_n):
    for before in (None, 2500, [0, 10, 5000, 4999, 1]):
        ask = {"before": before, "last_n": last_n, "fields": fields}
        assert_same(unpack_batch(vault.read_packed(USERS, **ask)), vault.read(USERS, **ask))


def test_filters_and_versions_are_answered_alike(vault):
    version = vault.read(USERS, before=None, last_n=1).version
    vault.append(make_events(3, 100, LATER))
    for ask in (
        {"actions": [1, 2]},
        {"scenarios": [0], "actions": [3], "fields": ["score"]},
        {"version": version},
    ):
        ask = {"before": 4000, "last_n": 700, **ask}
        assert_same(unpack_batch(vault.read_packed(USERS, **ask)), vault.read(USERS, **ask))


def test_nobody_and_unknown_users(vault):
    for users in ([], [99], [99, 98]):
        ask = {"before": 4000, "last_n": 3}
        assert_same(unpack_batch(vault.read_packed(users, **ask)), vault.read(users, **ask))


def test_events_past_their_time_are_left_out(tmp_path):
    with SeqVault.open(
        tmp_path / "v", schema=SCHEMA, retention_ms=1000, clock=lambda: 5.0
    ) as vault:
        vault.bulk_load(make_events(0, 2000, SCHEMA))
        vault.append(make_events(1, 50, SCHEMA))
        ask = {"before": None, "last_n": 2000}
        expected = vault.read([1, 2], **ask)
        assert 0 < expected.lengths[0] < 1000
        assert_same(unpack_batch(vault.read_packed([1, 2], **ask)), expected)


def test_only_what_is_asked_for_travels(vault):
    whole = len(vault.read_packed([1], before=None, last_n=4000))
    assert len(vault.read_packed([1], before=None, last_n=1000)) < whole / 2
    one = len(vault.read_packed([1], before=None, last_n=4000, fields=["action"]))
    assert one < whole / 3
    with pytest.raises(UnknownFieldError):
        vault.read_packed([1], before=None, last_n=4, fields=["nothing"])


def test_a_flipped_bit_or_a_missing_byte_is_refused(vault):
    message = vault.read_packed(USERS, before=None, last_n=300)
    for at in np.random.default_rng(0).integers(0, len(message), 200).tolist():
        damaged = bytearray(message)
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(DamagedFileError):
            unpack_batch(bytes(damaged))
    for size in (0, 5, 12, 100, len(message) - 1):
        with pytest.raises(DamagedFileError):
            unpack_batch(message[:size])
