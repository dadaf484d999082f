"""Rows for ids that nobody listed before: who gets one, who loses it, and which it is.

While steps run, the map from ids to rows does not change: steps look ids up where the table's map
lives, and note there what they met, in counts and maxima whose order does not matter. Between
files, when no step runs, ``refresh`` gives rows to the ids that were met often enough and takes
those of ids that were not met for long. So any number of workers ends with the same map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.training_settings import OpenTableSettings, TrainingSettings

NO_ID = np.iinfo(np.int64).max
"""Stands behind the sorted ids where the map has room; no real id."""
MISSING = -1
_NOBODY = np.iinfo(np.int64).min
"""Stands where no id waits; it is below every other."""
DAY_MS = 86_400_000
_SKETCH_ROWS = 4
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        admitted: Number of ids that got a row.
        evicted: Rows that lost their id, int32.
        refused: Number of ids for which there was no room.
    """

    admitted: int
    evicted: NDArray[np.int32]
    refused: int


class OpenRows(tf.Module):
    """The map from ids to rows of one table. Create it inside the strategy's scope, if any.

    All its variables lie together, on one parameter server.

    Args:
        name: The table's name.
        rows: Rows of the table including row 0, the missing one: there is room for one id less.
        settings: When an id gets a row and when it loses it.

    Example:
        >>> open_rows = OpenRows("item", rows=3, settings=OpenTableSettings())
        >>> ids = tf.constant([700, 7, -1], tf.int64)
        >>> open_rows.note(ids, open_rows.lookup(ids), tf.constant(0))
        >>> open_rows.refresh().admitted
        2
        >>> open_rows.lookup(ids).numpy()
        array([2, 1, 0], dtype=int32)
    """

    def __init__(self, name: str, rows: int, settings: OpenTableSettings) -> None:
        super().__init__(name=f"open_{name}")
        self._settings, self._room = settings, rows - 1
        # A power of two, for four cells an id: few ids share all of theirs with others.
        self._cells = 1 << max(10, int(4 * rows - 1).bit_length())
        self.ids = _variable(tf.fill([self._room], tf.constant(NO_ID, tf.int64)))
        with tf.distribute.get_strategy().extended.colocate_vars_with(self.ids):
            self.rows = _variable(tf.range(1, rows, dtype=tf.int32))
            self.seen = _variable(tf.zeros([rows], tf.int32))
            self.sketch = _variable(tf.zeros([_SKETCH_ROWS * self._cells], tf.int32))
            self.waiting = _variable(tf.fill([self._cells], tf.constant(_NOBODY, tf.int64)))

    def lookup(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows of int64 ids [U], int32; 0 for the missing id -1 and for ids without a row."""
        with tf.device(self.ids.device):
            place = tf.searchsorted(self.ids.read_value(), ids)
            place = tf.minimum(place, self._room - 1)
            found = tf.equal(self.ids.sparse_read(place), ids)
            found &= tf.not_equal(ids, NO_ID)
            return tf.where(found, self.rows.sparse_read(place), 0)

    def note(self, ids: tf.Tensor, rows: tf.Tensor, day: tf.Tensor) -> None:
        """Note what a step met.

        Args:
            ids: int64 [U], distinct.
            rows: What ``lookup`` said.
            day: int32 scalar, days since 1970.
        """
        with tf.device(self.ids.device):
            # Row 0 keeps the latest day of all.
            known = tf.concat([[0], tf.boolean_mask(rows, rows > 0)], axis=0)
            tf.raw_ops.ResourceScatterMax(
                resource=self.seen.handle, indices=known, updates=tf.fill(tf.shape(known), day)
            )
            unknown = tf.boolean_mask(ids, tf.equal(rows, 0) & tf.not_equal(ids, MISSING))
            cells = self._sketch_cells(unknown)
            tf.raw_ops.ResourceScatterAdd(
                resource=self.sketch.handle, indices=cells, updates=tf.ones_like(cells, tf.int32)
            )
            # Of all that share a cell the least is counted: an id may come early, never late.
            counts = tf.reduce_min(self.sketch.sparse_read(cells), axis=1)
            reached = tf.boolean_mask(unknown, counts >= self._settings.sightings)
            # Two may want one place: the larger id gets it, whoever comes first; the other one
            # waits at its next sighting.
            tf.raw_ops.ResourceScatterMax(
                resource=self.waiting.handle,
                indices=tf.math.floormod(_mixed(reached, 0), self._cells),
                updates=reached,
            )

    def refresh(self) -> Refreshed:
        """Give rows to the ids that wait, and take those of ids unseen for long.

        No step may be running. The table's rows of ``evicted`` must be reset then.
        """
        ids, rows, seen = self.ids.numpy(), self.rows.numpy(), self.seen.numpy()
        count = int(np.searchsorted(ids, NO_ID))
        keeps = np.ones(count, bool)
        today = int(seen[0])
        if self._settings.days:
            keeps = seen[rows[:count]] > today - self._settings.days
        known, evicted = ids[:count][keeps], rows[:count][~keeps]
        free = np.sort(np.concatenate([rows[count:], evicted]))
        wanted = np.setdiff1d(_ids_in(self.waiting.numpy()), known)
        admitted = wanted[: len(free)]
        seen[free] = 0
        seen[free[: len(admitted)]] = today
        new_ids = np.concatenate([known, admitted])
        new_rows = np.concatenate([rows[:count][keeps], free[: len(admitted)]])
        order = np.argsort(new_ids)
        padding = np.full(self._room - len(new_ids), NO_ID, np.int64)
        self.ids.assign(np.concatenate([new_ids[order], padding]))
        self.rows.assign(np.concatenate([new_rows[order], free[len(admitted) :]]))
        self.seen.assign(seen)
        self.waiting.assign(np.full(self._cells, _NOBODY, np.int64))
        return Refreshed(len(admitted), evicted, len(wanted) - len(admitted))

    def extend(
        self,
        ids: NDArray[np.int64],
        rows: NDArray[np.int32],
        seen: NDArray[np.int32],
        sketch: NDArray[np.int32],
        waiting: NDArray[np.int64],
    ) -> None:
        """Go on with the map of a table that had fewer rows, or as many; the further ones are free.

        No step may be running. The arguments are the values of that map's variables.
        """
        room, cells = self._room - len(ids), len(sketch) // _SKETCH_ROWS
        self.ids.assign(np.concatenate([ids, np.full(room, NO_ID, np.int64)]))
        further = np.arange(len(seen), len(seen) + room, dtype=np.int32)
        self.rows.assign(np.concatenate([rows, further]))
        self.seen.assign(np.pad(seen, (0, room)))
        # Of 2c cells an id counts in h mod 2c, which is h mod c or c more. Both begin with what the
        # one had counted: that may be too high for an id, never too low.
        repeated = np.tile(sketch.reshape(_SKETCH_ROWS, cells), self._cells // cells)
        self.sketch.assign(repeated.ravel())
        met = _ids_in(waiting)
        places = np.full(self._cells, _NOBODY, np.int64)
        # Places that differ modulo c differ modulo 2c: none of them is wanted twice.
        places[_mixed(tf.constant(met), 0).numpy() % self._cells] = met
        self.waiting.assign(places)

    def mapping(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The ids that have a row, sorted, and their rows."""
        ids = self.ids.numpy()
        count = int(np.searchsorted(ids, NO_ID))
        return ids[:count], self.rows.numpy()[:count]

    def _sketch_cells(self, ids: tf.Tensor) -> tf.Tensor:
        """int64 [U, 4], a cell in each row of the sketch."""
        return tf.stack(
            [
                tf.math.floormod(_mixed(ids, number), self._cells) + number * self._cells
                for number in range(_SKETCH_ROWS)
            ],
            axis=1,
        )


def check_open_tables(spec: FeatureSpec, settings: TrainingSettings) -> None:
    """Raise unless the tables that are to be open can be.

    Raises:
        SettingsError: There is no such table, its ids are no raw ids, or its rows must be known
            before for content vectors.
    """
    item_table = spec.event_fields["item_id"].table
    for name in settings.open_tables:
        kinds = {key: table.ids for key, table in spec.tables.items()}
        if kinds.get(name) != "vocabulary":
            others = sorted(key for key, ids in kinds.items() if ids == "vocabulary")
            raise SettingsError(
                f"section training: open_tables names {name!r}, and feature spec {spec.name!r} has "
                f"no such table with `ids: vocabulary`; it has {others}"
            )
        if spec.content_fields and name == item_table:
            raise SettingsError(
                f"section training: open_tables names {name!r}, to whose rows the content fields "
                f"{sorted(spec.content_fields)} belong: these need rows that are known before"
            )


def day_of(times_ms: tf.Tensor) -> tf.Tensor:
    """The latest day of some request times, int32."""
    return tf.cast(tf.reduce_max(times_ms) // DAY_MS, tf.int32)


def _ids_in(waiting: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids among the places to wait at; earlier versions left the missing id where none is."""
    return waiting[(waiting != _NOBODY) & (waiting != MISSING)]


def _mixed(ids: tf.Tensor, number: int) -> tf.Tensor:
    """Ids hashed to at least 0, by one of four functions."""
    factor = np.uint64(_FACTORS[number]).astype(np.int64)
    mixed = tf.bitwise.bitwise_xor(ids, tf.bitwise.right_shift(ids, tf.constant(31, tf.int64)))
    mixed *= factor  # wraps
    return tf.bitwise.bitwise_and(
        tf.bitwise.right_shift(mixed, tf.constant(29, tf.int64)), tf.constant(2**34 - 1, tf.int64)
    )


def _variable(initial: tf.Tensor) -> tf.Variable:
    return tf.Variable(initial, trainable=False)
