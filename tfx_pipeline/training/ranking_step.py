"""One training step: rows, embeddings, tower, loss, gradients, two optimisers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.batch_parts import Found, sum_over_parts
from tfx_pipeline.training.compiled_tower import CompiledTower, in_buckets
from tfx_pipeline.training.content_vectors import CONTENT
from tfx_pipeline.training.devices import devices_of, gpus_of_a_worker
from tfx_pipeline.training.diverged import finite
from tfx_pipeline.training.embedding_tables import gather_rows, shards_of
from tfx_pipeline.training.labels import labels_of, total_weight, weighted_loss
from tfx_pipeline.training.learning_rate import warm_up
from tfx_pipeline.training.open_rows import day_of
from tfx_pipeline.training.parsing import CANDIDATE_COUNT, REQUEST_TIME
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.tower import Tower, TowerOutput
from tfx_pipeline.training.traffic import Traffic
from tfx_pipeline.training.training_state import TrainingState


class DistinctRows:
    """The distinct rows of one table that a batch needs, and where each input uses them.

    Args:
        rows: Int32 rows by model input, of all inputs that use the table.
    """

    def __init__(self, rows: Mapping[str, tf.Tensor]) -> None:
        flat = tf.concat([tf.reshape(value, [-1]) for value in rows.values()], axis=0)
        self.ids, index = tf.unique(flat)
        pieces = tf.split(index, [tf.size(value) for value in rows.values()])
        self.index = {
            name: tf.reshape(piece, tf.shape(value))
            for (name, value), piece in zip(rows.items(), pieces, strict=True)
        }


class RankingStep:
    """Computes predictions and takes training steps on batches of requests.

    Args:
        spec: The feature spec.
        settings: Learning rates and decay.
        tower: The ranker, a pure function of its weights.
        lookup: Turns raw inputs into rows.
        state: The variables.
        content: Frozen content vectors [rows of the item's table, width], if the spec has any.
        negative_rate: Share of negatives that training sees. Odds are learned too high by its
            inverse: predictions add its logarithm to the logits.
        traffic: Where steps add up the bytes of rows and gradients; None counts none.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        settings: TrainingSettings,
        tower: Tower,
        lookup: RowLookup,
        state: TrainingState,
        content: tf.Variable | None,
        negative_rate: float = 1.0,
        traffic: Traffic | None = None,
    ) -> None:
        self._traffic = traffic
        self.logit_offset = math.log(negative_rate)
        self.spec, self.settings, self.tower = spec, settings, tower
        self.labels = labels_of(spec, settings)
        self.lookup, self.state, self.content = lookup, state, content
        gpus = gpus_of_a_worker()
        self._devices = devices_of(settings, gpus)
        parts = settings.micro_batches * max(1, len(self._devices))
        self._compiled = (
            CompiledTower(tower, settings.batch_size // parts)
            if settings.xla == "on" or (settings.xla == "auto" and gpus)
            else None
        )

    def train(
        self, batch: Mapping[str, tf.Tensor], rate: tf.Tensor | float = 1.0
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Take one step on a parsed batch, with both learning rates multiplied by ``rate``.

        Returns:
            The first label's logits float32 [B, N] before the step, the mask of real candidates
            bool [B, N], and the sum of their losses float32.

        Raises:
            tf.errors.InvalidArgumentError: A label, a row, the loss or a gradient is not finite
                (``where_not_finite`` tells which); tables and weights are as before.
        """
        settings, state = self.settings, self.state
        step = state.step.assign_add(1)
        candidates = tf.shape(batch["label"])[1]
        if self._compiled is not None:
            batch = in_buckets(self.spec, batch)
        open_rows, met = self._open_rows(batch)
        rows = self.lookup.table_rows(self.spec, batch, open_rows)
        distinct = self._distinct_rows(rows)
        batch = {
            name: finite(value, f"label {name!r} of the input") if _is_label(name) else value
            for name, value in batch.items()
        }
        received: list[tf.Tensor] = []
        sent: list[tf.Tensor] = []
        values = {
            name: finite(state.tables[name].gather(each.ids, received), f"table {name!r}")
            for name, each in distinct.items()
        }
        frozen = {
            name: finite(rows_, "the content vectors of the input")
            for name, rows_ in self._frozen_rows(distinct).items()
        }
        weights = finite(state.dense.read(), "the dense weights")
        valid = valid_candidates(batch)
        (loss_sum, weight_gradient, table_gradients), logits, carried = self._gradients(
            batch, valid, rows, distinct, values, frozen, weights, step
        )
        weight_gradient = finite(weight_gradient, "the gradient of the dense weights")
        by_row = {
            name: finite(gradient, f"the gradient of table {name!r}")
            + settings.table_l2 * values[name]
            for name, gradient in table_gradients.items()
        }
        weight_gradient, by_row = _clipped(weight_gradient, by_row, settings.clip_norm)
        rate = rate * warm_up(settings, step)
        # No table may learn from a step of which another part is not finite.
        with tf.control_dependencies([weight_gradient, *by_row.values()]):
            for name, gradient in by_row.items():
                state.tables[name].apply_gradient(
                    distinct[name].ids, gradient, settings.table_learning_rate * rate, sent
                )
            state.dense.apply_gradient(
                weight_gradient,
                step,
                settings.dense_learning_rate * rate,
                settings.weight_decay,
                (settings.beta_1, settings.beta_2),
            )
            state.carried.assign(carried)
            if self._traffic is not None:
                self._traffic.add(received, sent)
            for name, (ids, found) in met.items():
                state.open_rows[name].note(ids, found, day_of(batch[REQUEST_TIME]))
        return logits[:, :candidates], valid[:, :candidates], loss_sum

    def _gradients(
        self,
        batch: Mapping[str, tf.Tensor],
        valid: tf.Tensor,
        rows: Mapping[str, tf.Tensor],
        distinct: Mapping[str, DistinctRows],
        values: Mapping[str, tf.Tensor],
        frozen: Mapping[str, tf.Tensor],
        weights: tf.Tensor,
        step: tf.Tensor,
    ) -> tuple[tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]], tf.Tensor, list[tf.Tensor]]:
        """The sum of losses and the gradients of weights and rows; logits; the carried state."""
        parts = self.settings.micro_batches * max(1, len(self._devices))
        labels = {name: each for name, each in batch.items() if _is_label(name)}
        totals = [total_weight(label, self.labels, batch, valid) for label in self.labels]
        count = tf.maximum(tf.reduce_sum(tf.cast(valid, tf.float32)), 1.0)
        requests = tf.shape(valid)[0]

        def part(of_requests: Any, carried: list[tf.Tensor], number: tf.Tensor) -> Found:
            labels, valid, rows, index = of_requests
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([weights, values])
                output = self._pass(
                    rows, index, {**values, **frozen}, weights, carried, step * parts + number
                )
                logits = output.logits
                losses = [
                    label.weight * weighted_loss(label, self.labels, labels, each, valid, total)
                    for label, each, total in zip(self.labels, output.heads, totals, strict=True)
                ]
                auxiliary = [
                    cross_entropy(each, labels["label"], valid) for each in output.auxiliary_logits
                ]
                penalty = output.penalty
                if parts > 1:
                    penalty *= tf.cast(tf.shape(valid)[0] / requests, tf.float32)
                loss = tf.add_n([*losses, *(each / count for each in auxiliary), penalty])
                loss = finite(loss, "the loss")
            weight_gradient, gradients = tape.gradient(loss, (weights, values))
            by_row = {name: tf.convert_to_tensor(each) for name, each in gradients.items()}
            loss_sum = cross_entropy(logits, labels["label"], valid)
            return (loss_sum, weight_gradient, by_row), logits, output.carried

        index = {name: each.index for name, each in distinct.items()}
        nothing = (
            (
                0.0,
                tf.zeros_like(weights),
                {name: tf.zeros_like(each) for name, each in values.items()},
            ),
            tf.zeros([0, tf.shape(valid)[1]]),
        )
        return sum_over_parts(
            part,
            (labels, valid, rows, index),
            self.state.carried.read(),
            nothing,
            self.settings.micro_batches,
            self._devices,
        )

    def predict(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The first of what ``predict_heads`` returns."""
        return self.predict_heads(batch)[0]

    def predict_heads(self, batch: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """Logits float32 [B, N] of a parsed batch by label, without dropout.

        Those of the first label are for all negatives there are, sampled or not.
        """
        weights = self.state.dense.read()
        carried = self.state.carried.read()
        first, *others = self._pass(*self._looked_up(batch), weights, carried, None).heads
        return [first + self.logit_offset, *others]

    def gates(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """What the encoder took of each past event, float32 [B, N, heads, L]; see ``Tower.gates``.

        Raises:
            ValueError: The encoder has no gates.
        """
        state = self.state
        inputs = self._inputs(*self._looked_up(batch))
        return self.tower.gates(
            state.dense.unflatten(state.dense.read()), state.carried.read(), inputs
        )

    def table_rows(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Rows of all inputs of a parsed batch, those of open tables as training has given them."""
        return self.lookup.table_rows(self.spec, batch, self._open_rows(batch)[0])

    def _looked_up(
        self, batch: Mapping[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], dict[str, dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
        """Rows by input, and by table where each input uses its distinct rows, and their values."""
        rows = self.table_rows(batch)
        distinct = self._distinct_rows(rows)
        values = {name: self.state.tables[name].gather(each.ids) for name, each in distinct.items()}
        values.update(self._frozen_rows(distinct))
        return rows, {name: each.index for name, each in distinct.items()}, values

    def _open_rows(
        self, batch: Mapping[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], dict[str, tuple[tf.Tensor, tf.Tensor]]]:
        """Rows of the inputs of open tables; by table the distinct ids and their rows."""
        rows, met = {}, {}
        for table, open_rows in self.state.open_rows.items():
            names = [each.name for each in self.spec.model_inputs() if each.table == table]
            distinct = DistinctRows({name: batch[name] for name in names})
            found = open_rows.lookup(distinct.ids)
            met[table] = distinct.ids, found
            rows.update({name: tf.gather(found, distinct.index[name]) for name in names})
        return rows, met

    def _distinct_rows(self, rows: Mapping[str, tf.Tensor]) -> dict[str, DistinctRows]:
        by_table: dict[str, dict[str, tf.Tensor]] = {}
        for model_input in self.spec.model_inputs():
            if model_input.table is not None:
                by_table.setdefault(model_input.table, {})[model_input.name] = rows[
                    model_input.name
                ]
        return {table: DistinctRows(inputs) for table, inputs in by_table.items()}

    def _frozen_rows(self, distinct: Mapping[str, DistinctRows]) -> dict[str, tf.Tensor]:
        if self.content is None:
            return {}
        return {CONTENT: gather_rows(shards_of(self.content), distinct[self._item_table].ids)}

    @property
    def _item_table(self) -> str:
        return self.spec.event_fields["item_id"].table or ""

    def _pass(
        self,
        rows: Mapping[str, tf.Tensor],
        index: Mapping[str, Mapping[str, tf.Tensor]],
        values: Mapping[str, tf.Tensor],
        weights: tf.Tensor,
        carried: Sequence[tf.Tensor],
        step: tf.Tensor | None,
    ) -> TowerOutput:
        tower = self.tower if self._compiled is None or step is None else self._compiled
        inputs = self._inputs(rows, index, values)
        return tower(self.state.dense.unflatten(weights), carried, inputs, step)

    def _inputs(
        self,
        rows: Mapping[str, tf.Tensor],
        index: Mapping[str, Mapping[str, tf.Tensor]],
        values: Mapping[str, tf.Tensor],
    ) -> dict[str, tf.Tensor]:
        def embed(table: str, name: str) -> tf.Tensor:
            source = self._item_table if table == CONTENT else table
            return tf.gather(values[table], index[source][name])

        return self.tower.inputs(rows, embed)


def _clipped(
    dense: tf.Tensor, by_row: dict[str, tf.Tensor], clip_norm: float
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Gradients scaled down together, so that their global norm is at most ``clip_norm``."""
    if not clip_norm:
        return dense, by_row
    (dense, *rows), _ = tf.clip_by_global_norm([dense, *by_row.values()], clip_norm)
    return dense, dict(zip(by_row, rows, strict=True))


def _is_label(name: str) -> bool:
    return name == "label" or name.startswith("label_")


def valid_candidates(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Mask of real candidates, bool [B, N]."""
    return tf.range(tf.shape(batch["candidate_item_id"])[1]) < batch[CANDIDATE_COUNT][:, None]


def cross_entropy(logits: tf.Tensor, label: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Sum of binary cross entropies of the valid candidates in nats."""
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=label, logits=logits)
    return tf.reduce_sum(tf.where(valid, losses, 0.0))
