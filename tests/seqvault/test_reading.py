"""The direct read against the general one, which takes each step by itself."""

import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from seqvault import Schema, SeqVault
from seqvault.codec.primitives import checksum
from seqvault.disk.files import Files
from seqvault.errors import DamagedFileError, NewerFormatError
from seqvault.testing.file_regions import regions_of

FIELDS = [
    ("item_id", pa.int64()), ("author", pa.int32()), ("category", pa.int16()),
    ("action", pa.uint8()), ("same", pa.int8()),
]  # fmt: skip
SCHEMA = Schema.from_arrow(pa.schema(FIELDS))
LATER = Schema.from_arrow(
    pa.schema([*FIELDS, pa.field("score", pa.float32(), metadata={"seqvault.default": "-2.5"})])
)
USERS = [1, 2, 77, 3, 4, 5, 6, -9, 1]


class SeenFiles(Files):
    """Sees each read, so that the store goes the general way."""

    def __init__(self) -> None:
        self.bytes_read = 0

    def preadv(self, fd: int, out: memoryview, offset: int) -> int:
        self.bytes_read += len(out)
        return super().preadv(fd, out, offset)


def make_events(seed: int, counts: dict[int, int], schema: Schema) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = sum(counts.values())
    events = {
        "user_id": rng.permutation(np.repeat(list(counts), list(counts.values()))),
        "timestamp": rng.integers(0, 20_000, n),
        "item_id": np.where(rng.random(n) < 0.9, 2**40 + rng.zipf(1.3, n) % 2**30, -rng.zipf(2, n)),
        "author": rng.integers(-(2**31), 2**31, n).astype(np.int32),
        "category": rng.integers(0, 300, n).astype(np.int16),
        "action": rng.choice(256, n, p=[0.9] + [0.1 / 255] * 255).astype(np.uint8),
        "same": np.full(n, -7, np.int8),
    }
    if schema is LATER:
        events["score"] = rng.normal(size=n).astype(np.float32)
    return events


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Users in one record, in several, in memory only, long ones, some of an older schema."""
    path = tmp_path_factory.mktemp("reading") / "vault"
    with SeqVault.open(path, schema=SCHEMA) as vault:
        counts = {1: 5000, 2: 300, 3: 256, 4: 1, 5: 129, -9: 40}
        vault.bulk_load(make_events(0, counts, SCHEMA))
    with SeqVault.open(path, schema=LATER) as vault:
        for seed in (1, 2):
            vault.append(make_events(seed, {1: 200, 2: 10}, LATER))
            vault.merge()
        vault.append(make_events(3, {1: 30, 5: 1, 6: 400}, LATER))
    return path


def assert_same(got, expected) -> None:
    assert list(got.columns) == list(expected.columns)
    for name, values in expected.columns.items():
        assert got[name].dtype == values.dtype
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    np.testing.assert_array_equal(got.lengths, expected.lengths)
    assert got.lengths.dtype == np.int32
    np.testing.assert_array_equal(got.version, expected.version)


@pytest.mark.parametrize("retention", [0, 8000])
def test_the_direct_read_gives_what_the_general_one_gives(path, tmp_path, retention):
    path = shutil.copytree(path, tmp_path / "vault")
    with SeqVault.open(path, retention_ms=retention):
        pass
    clock = {"clock": lambda: 20.0}
    rng = np.random.default_rng(7)
    with (
        SeqVault.open(path, read_only=True, **clock) as direct,
        SeqVault.open(path, read_only=True, files=SeenFiles(), **clock) as general,
    ):
        assert direct._reader._direct and general._reader._direct is None
        for users in ([], [77], *([user] for user in USERS), USERS):
            befores = [None, 0, 20_000, rng.integers(0, 20_000, len(users))]
            for before in befores:
                last_n = int(rng.choice([1, 7, 255, 256, 257, 1000, 9000]))
                for fields in (None, ["score", "same"], ["timestamp"], []):
                    ask = (users, before, last_n, None, None, fields, None)
                    assert_same(direct.read(*ask), general.read(*ask))
                    got, expected = direct.read_ragged(*ask), general.read_ragged(*ask)
                    np.testing.assert_array_equal(got[0], expected[0])
                    np.testing.assert_array_equal(got[1], expected[1])
                    assert list(got[2]) == list(expected[2])
                    for name, values in expected[2].items():
                        np.testing.assert_array_equal(got[2][name], values)


def test_an_answer_stays_as_it_is_while_somebody_has_it(path):
    with SeqVault.open(path, read_only=True) as vault:
        first = vault.read([1], before=None, last_n=300)
        items = first["item_id"].copy()
        part = first["item_id"][0, :10]
        del first
        for user in USERS:
            vault.read([user], before=None, last_n=300)
        np.testing.assert_array_equal(part, items[0, :10])


def live_records(vault: SeqVault) -> set[tuple[int, int]]:
    """Segment and place of each record that is in use."""
    index = vault._state.index
    _, numbers, offsets, _, _ = index.extents(np.arange(len(index.users)))
    return set(zip(numbers.tolist(), offsets.tolist(), strict=True))


def test_every_flipped_bit_is_refused_or_in_bytes_that_no_answer_needs(path, tmp_path):
    """In live records all flips are refused; in padding, and in records that others have
    replaced, they change nothing: nobody reads those."""
    copy = shutil.copytree(path, tmp_path / "copy")
    with SeqVault.open(copy) as vault:
        vault.append(make_events(4, {2: 700}, LATER))
        vault.merge()  # replaces the records of user 2
        live = live_records(vault)
    with SeqVault.open(copy, read_only=True) as vault:
        expected = vault.read(USERS, before=None, last_n=6000)
    rng, outcomes = np.random.default_rng(3), Counter()
    for file in sorted((copy / "segments").iterdir()):
        whole, record = file.read_bytes(), 0
        for region in regions_of(str(file), whole):
            if region.name == "segment record head":
                record = region.start
            name, in_use = region.name, (int(file.stem), record) in live
            if name not in ("segment header", "segment footer", "segment trailer"):
                name = "padding" if name.endswith("padding") else "live" if in_use else "replaced"
            size = region.stop - region.start
            for at in rng.choice(size, min(size, 10), replace=False).tolist():
                damaged = bytearray(whole)
                damaged[region.start + at] ^= 1 << int(rng.integers(8))
                file.unlink()
                file.write_bytes(damaged)
                try:
                    with SeqVault.open(copy, read_only=True) as vault:
                        assert_same(vault.read(USERS, before=None, last_n=6000), expected)
                    outcomes[name, "harmless"] += 1
                except (DamagedFileError, NewerFormatError):
                    outcomes[name, "refused"] += 1
        file.write_bytes(whole)
    names = {name for name, _ in outcomes}
    assert names == {
        "segment header", "segment footer", "segment trailer", "live", "padding", "replaced"
    }  # fmt: skip
    harmless = {name for name, outcome in outcomes if outcome == "harmless"}
    refused = {name for name, outcome in outcomes if outcome == "refused"}
    assert harmless == {"padding", "replaced"} and refused == names - harmless, outcomes


def test_more_users_than_a_thread_has_room_for(path):
    many = np.tile(np.array(USERS), 200)
    with SeqVault.open(path, read_only=True) as vault:
        few = vault.read(USERS, before=15_000, last_n=20)
        batch = vault.read(many, before=15_000, last_n=20)
        np.testing.assert_array_equal(batch["item_id"], np.tile(few["item_id"], (200, 1)))


def test_of_long_histories_only_the_blocks_needed_are_read(path):
    seen = SeenFiles()
    with SeqVault.open(path, read_only=True, files=seen) as vault:
        opened = seen.bytes_read
        vault.read([1], before=None, last_n=9000)
        whole, opened = seen.bytes_read - opened, seen.bytes_read
        vault.read([1], before=None, last_n=300)
        assert 0 < seen.bytes_read - opened < whole / 3


def test_a_segment_of_format_1_is_read(tmp_path):
    """It differs by its number alone where no chunk is coded: here all are too short."""
    events = make_events(0, {1: 20, 2: 5}, SCHEMA)
    with SeqVault.open(tmp_path / "v", schema=SCHEMA) as vault:
        vault.bulk_load(events)
        expected = vault.read([1, 2], before=None, last_n=30)
    (name,) = (tmp_path / "v" / "segments").iterdir()
    data = bytearray(name.read_bytes())
    assert data[8:12] == (2).to_bytes(4, "little")
    data[8:12] = (1).to_bytes(4, "little")
    data[28:32] = checksum(bytes(data[:28])).to_bytes(4, "little")
    name.write_bytes(data)
    with SeqVault.open(tmp_path / "v") as vault:
        assert_same(vault.read([1, 2], before=None, last_n=30), expected)
        assert vault.verify()["events"] == 25
