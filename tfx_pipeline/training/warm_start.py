"""What a later training takes over from an earlier one, and the check that it fits."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.errors import OtherModelError, PipelineError
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.section import plain
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.row_lookup import RowLookup, more_rows

LEARNED = "learned.npz"
_MODEL, _VOCABULARY, _LIMITS = "model", "vocabulary ", "limits "


@dataclass(frozen=True)
class WarmStart:
    """The end of a training, from which another one may begin.

    Tables, dense weights and the state of their optimisers are in its last checkpoint, or in the
    best one if it evaluated while it trained. Beside them lie the vocabularies and limits by which
    it found its rows: a row keeps its meaning in the later training, whose new ids get the rows
    that nobody has had.

    Attributes:
        feature_spec: Content of the feature spec.
        model: Settings of the model.
        labels: Labels with their settings, in order.
        trained_until: End of the time that was trained on, milliseconds UTC; 0 if nobody said.
        lookup: From ids and values to rows, but for the open tables, whose maps the checkpoint has.
        open_tables: Names of the open tables, sorted; None if a version left it that kept no names.
    """

    feature_spec: Mapping[str, Any]
    model: Mapping[str, Any]
    labels: Mapping[str, Any]
    trained_until: int
    lookup: RowLookup
    open_tables: Sequence[str] | None = None

    @classmethod
    def of_training(
        cls,
        spec: FeatureSpec,
        model: ModelSettings,
        settings: TrainingSettings,
        lookup: RowLookup,
        trained_until: int = 0,
    ) -> WarmStart:
        """What a training with these settings leaves."""
        labels, opened = plain(settings)["labels"], sorted(settings.open_tables)
        return cls(spec.to_dict(), plain(model), labels, trained_until, lookup, opened)

    def save(self, folder: str) -> None:
        """Write it beside the training's checkpoints, whole or not at all."""
        described = {
            "feature_spec": self.feature_spec,
            "model": self.model,
            "labels": self.labels,
            "trained_until": self.trained_until,
            "open_tables": self.open_tables,
        }
        arrays: dict[str, NDArray] = {_MODEL: np.array(json.dumps(described))}
        arrays |= {_VOCABULARY + name: ids for name, ids in self.lookup.vocabularies.items()}
        arrays |= {_LIMITS + name: limits for name, limits in self.lookup.boundaries.items()}
        content = io.BytesIO()
        np.savez(content, **arrays)
        fresh = os.path.join(folder, f"{LEARNED}.tmp")
        tf.io.gfile.makedirs(folder)
        with tf.io.gfile.GFile(fresh, "wb") as file:
            file.write(content.getvalue())
        tf.io.gfile.rename(fresh, os.path.join(folder, LEARNED), overwrite=True)

    @staticmethod
    def is_at(folder: str) -> bool:
        """Whether a training that ended left one in this folder."""
        return bool(tf.io.gfile.exists(os.path.join(folder, LEARNED)))

    @classmethod
    def load(cls, folder: str) -> WarmStart:
        """Read what a training left in the folder of its checkpoints.

        Raises:
            PipelineError: Nothing is there, or it is damaged.
        """
        path = os.path.join(folder, LEARNED)
        if not cls.is_at(folder):
            raise PipelineError(
                f"{folder} holds no {LEARNED}: give the `checkpoints` of a training that ended, "
                "or begin anew without a warm start"
            )
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                arrays = dict(np.load(io.BytesIO(file.read())))
            described = json.loads(str(arrays.pop(_MODEL)))
            return cls(
                **described,
                lookup=RowLookup(_named(arrays, _VOCABULARY), _named(arrays, _LIMITS)),
            )
        except _DAMAGE as error:
            raise PipelineError(
                f"{path} is damaged ({error}): begin without this warm start, or from another one"
            ) from error

    def check_fits(
        self, spec: FeatureSpec, model: ModelSettings, settings: TrainingSettings
    ) -> None:
        """Raise unless a training with these settings has the same rows, weights and heads.

        A table may have more rows than before, unless it is hashed.

        Raises:
            OtherModelError: One line that names all that differs.
        """
        other = WarmStart.of_training(spec, model, settings, self.lookup)
        before, now = dict(self.feature_spec), dict(other.feature_spec)
        tables = before.pop("tables"), now.pop("tables")
        changed = [
            *_differences("feature spec", before, now),
            *_other_tables(*tables),
            *_differences("model", _shaping(self.model), _shaping(other.model)),
            *_differences("labels", self.labels, other.labels),
        ]
        if list(self.labels) != list(other.labels):
            changed.append("order of labels")
        if self.open_tables is not None and self.open_tables != other.open_tables:
            changed.append(f"open_tables ({self.open_tables}, now {other.open_tables})")
        if changed:
            why = "".join(f"{reason}; " for reason in _why_rows_stay(*tables))
            raise OtherModelError(
                f"the warm start is of a model with another {', another '.join(changed)}: {why}"
                "train with what it was trained with, or begin anew without it (run --cold-start)"
            )

    def extended(
        self, found: RowLookup, spec: FeatureSpec, report: Callable[[str], None] = print
    ) -> RowLookup:
        """The lookup of a training that goes on: known ids keep their rows, new ones get the next.

        Limits stay as they were, because each row belongs to the values between two of them.

        Args:
            found: What Transform found in the new data, the most frequent ids first.
            spec: Says how many rows each table has.
            report: Takes a line for each table with more new ids than rows.
        """
        vocabularies = {}
        for table, known in self.lookup.vocabularies.items():
            if table in (self.open_tables or ()):  # its ids are in the checkpoint
                vocabularies[table] = known
                continue
            new = found.vocabularies[table]
            new = new[~np.isin(new, known)]
            room = spec.tables[table].rows - 1 - len(known)
            if len(new) > room:
                report(
                    f"table {table!r} is full: {len(new) - room:,} new ids get no row; "
                    f"{more_rows(table)}"
                )
            vocabularies[table] = np.concatenate([known, new[:room]])
        return replace(self.lookup, vocabularies=vocabularies)


def warm_checkpoints(folder: str) -> str:
    """Where the state lies that a training exported: the best one, if it kept it."""
    best = os.path.join(folder, "best")
    return best if tf.io.gfile.exists(best) else folder


def warm_start_fingerprint(folder: str) -> str:
    """Hash of all that a training takes over; "" for "", the beginning from nothing.

    The index of a checkpoint holds the checksum of each of its tensors.

    Raises:
        PipelineError: No training left anything there.
    """
    if not folder:
        return ""
    WarmStart.load(folder)
    states = sorted(tf.io.gfile.glob(os.path.join(warm_checkpoints(folder), "ckpt-*.index")))
    digest = hashlib.sha256()
    for path in (os.path.join(folder, LEARNED), *states):
        with tf.io.gfile.GFile(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


_DAMAGE = (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def _named(arrays: Mapping[str, NDArray], start: str) -> dict[str, NDArray]:
    return {name[len(start) :]: value for name, value in arrays.items() if name.startswith(start)}


def _shaping(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model without what only training knows."""
    return {name: value for name, value in model.items() if name != "dropout"}


def _other_tables(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between tables, but for rows where there may be more."""
    for name in {**before, **now}:
        old, new = before.get(name, {}), now.get(name, {})
        if old and new and _may_grow(old, new):
            old = {**old, "rows": new["rows"]}
        yield from _differences(f"feature spec.tables.{name}", old, new)


def _may_grow(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool(new["ids"] != "hash" and new["rows"] > old["rows"])


def _why_rows_stay(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if old["rows"] == new["rows"] or _may_grow(old, new):
            continue
        if new["ids"] == "hash":
            yield f"table {name!r} is hashed, and with another number of rows its ids have others"
        else:
            yield f"table {name!r} may get more rows, not fewer, which would leave ids without one"


def _differences(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{what}.{name}{_shown(before.get(name), now.get(name))}" for name in names]


def _shown(before: Any, now: Any) -> str:
    scalar = (str, int, float, type(None))
    if isinstance(before, scalar) and isinstance(now, scalar):
        return f" ({before}, now {now})"
    return ""
