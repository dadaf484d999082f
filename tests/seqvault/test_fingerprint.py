"""The fingerprint: equal for equal content, another for any change that a read can see."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import seqvault
from seqvault import Schema, SeqVault
from seqvault.service.server import Server

NOW = 1_700_000_000_000


def events(items=(5, 6, 7), users=(1, 2, 1)):
    times = NOW + np.arange(len(items))
    return pa.table({"user_id": list(users), "timestamp": times, "item_id": list(items)})


def make(path, items=(5, 6, 7), users=(1, 2, 1), sides=((5, 0.5),), bulk=True):
    schema = Schema.from_arrow(events().schema)
    vault = SeqVault.open(path, schema=schema)
    vault.put_items(pa.table({"item_id": [i for i, _ in sides], "score": [s for _, s in sides]}))
    if bulk:
        vault.bulk_load(events(items, users))
    else:
        vault.append(events(items, users))
    return vault


@pytest.mark.parametrize("bulk", [True, False])
def test_equal_content_has_one_fingerprint_and_any_change_another(tmp_path, bulk):
    def of(name, **given):
        with make(tmp_path / name, bulk=bulk, **given) as vault:
            return vault.fingerprint()

    one = of("one")
    assert of("same") == one
    others = {
        of("item", items=(5, 6, 8)),  # as many events, of other items
        of("user", users=(1, 2, 3)),
        of("side", sides=((5, 0.75),)),
        of("fewer", items=(5, 6), users=(1, 2)),
    }
    assert len(others) == 4 and one not in others


def test_every_write_changes_it_and_reading_does_not(tmp_path):
    with make(tmp_path / "vault") as vault:
        seen = [vault.fingerprint()]
        for write in (
            lambda: vault.append(events()),
            lambda: vault.put_items(pa.table({"item_id": [5], "score": [0.9]})),
            lambda: vault.put_items(pa.table({"item_id": [9], "score": [0.9]})),
        ):
            write()
            seen.append(vault.fingerprint())
        vault.read([1], before=None, last_n=3)
        assert vault.fingerprint() == seen[-1]
        assert len(set(seen)) == len(seen)
    with SeqVault.open(tmp_path / "vault", read_only=True) as again:
        assert again.fingerprint() == seen[-1]


def test_servers_answer_with_it(tmp_path):
    vaults = [make(tmp_path / name) for name in ("a", "b")]
    servers = [Server(vault, merge_seconds=0) for vault in vaults]
    ports = [f"localhost:{server.port}" for server in servers]
    try:
        with seqvault.connect(ports[0]) as client:
            assert client.fingerprint() == vaults[0].fingerprint()
        with seqvault.connect(",".join(ports)) as both:
            before = both.fingerprint()
            assert both.fingerprint() == before
            vaults[1].append(events())
            assert both.fingerprint() != before
    finally:
        for server in servers:
            server.stop(0)
