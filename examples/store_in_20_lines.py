# %% [markdown]
# # A store of behaviour sequences in 20 lines
#
# SeqVault keeps what users did, durably, and answers one question fast: *what were the newest
# events of these users before this time?* `pip install "laser-ranking[seqvault]"`
#
# The first run compiles the store's kernels, which takes about a minute (`seqvault warm-up` does
# it ahead of time); later ones begin at once.

# %%
import sys
import tempfile

import pyarrow as pa

from seqvault import Schema, SeqVault


def main(folder: str) -> dict[str, list]:
    """Append, read as of a time, merge; returns what was read."""
    schema = Schema.from_arrow(pa.schema([("item_id", pa.int64()), ("stars", pa.int8())]))
    with SeqVault.open(f"{folder}/vault", schema=schema) as vault:
        # Durable when it returns, and seen by the very next read.
        vault.append(
            {
                "user_id": [7, 7, 8],
                "timestamp": [1_000, 2_000, 1_500],  # milliseconds
                "item_id": [11, 12, 13],
                "stars": [5, 2, 4],
            }
        )
        # Users by row, newest first, padded on the right: what a ranker takes.
        now = vault.read([7, 8], before=3_000, last_n=3)
        print("now        ", now["item_id"].tolist(), "lengths", now.lengths.tolist())

        # What was known before: events strictly earlier, whatever has come since.
        earlier = vault.read([7, 8], before=[2_000, 1_500], last_n=3)
        print("as it was  ", earlier["item_id"].tolist())

        # A merge packs the log into segments. No answer changes, and a version that was read
        # before can be read again to the byte: so a training set is reproducible.
        vault.append({"user_id": [7], "timestamp": [2_500], "item_id": [14], "stars": [3]})
        vault.merge()
        again = vault.read([7, 8], before=3_000, last_n=3, version=now.version)
        latest = vault.read([7, 8], before=3_000, last_n=3)
        print("again      ", again["item_id"].tolist())
        print("after merge", latest["item_id"].tolist())
        return {
            name: batch["item_id"].tolist()
            for name, batch in [("now", now), ("earlier", earlier), ("again", again)]
        } | {"latest": latest["item_id"].tolist()}


# %% [markdown]
# What next: `seqvault serve VAULT --port 7420` puts the store behind gRPC, and
# `seqvault.connect("localhost:7420")` has the same methods. How it promises what it promises is in
# `docs/seqvault/operations.md`.

# %%
if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(scratch)
