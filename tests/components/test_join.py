"""The point-in-time join on a log small enough to check by hand."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from components.seqvault_example_gen import join
from components.seqvault_example_gen.impressions import check_rows, group_requests
from components.seqvault_example_gen.join import join_requests


@pytest.fixture
def joined(spec, vault, table_of):
    """Rows to (Examples as dicts of lists, counts)."""

    def run(rows):
        requests = group_requests(check_rows(table_of(rows), 0, spec).good, spec)
        examples, counts = [], Counter()
        for serialized, counted in join_requests(requests, vault, spec):
            examples += [as_lists(each) for each in serialized]
            # Side information is counted once per read, which tests of batching must not see.
            counts += Counter(
                {k: n for k, n in counted.items() if not k.startswith(("ids:", "outside"))}
            )
        return examples, counts

    return run


def as_lists(serialized):
    example = tf.train.Example.FromString(serialized)
    return {
        name: list(feature.float_list.value or feature.int64_list.value)
        for name, feature in example.features.feature.items()
    }


def test_one_request_by_hand(joined, row, now):
    rows = [row(item=12, position=0, click=1), row(item=99, position=1, like=1)]
    (example,), counts = joined(rows)
    unknown = example["candidate_duration"].pop()
    assert np.isnan(unknown)
    # The event at the request's time (item 14) and the one after it (15) are not there, and of
    # the four before it the oldest (10) is cut.
    assert example == {
        "history_item_id": [14, 13, 12],  # embedding rows of the items 13, 12, 11
        "history_scenario": [1, 3, 2],
        "history_author": [4, 3, 2],
        "history_tag": [0, 2, 1],  # of a vocabulary: raw
        "history_duration": [300.0, 200.0, 100.0],
        "history_length": [3],
        "history_age_seconds": [0, 20, 30],
        "candidate_item_id": [13, 0],  # item 99 lies outside its table
        "candidate_author": [3, 0],
        "candidate_tag": [2, -1],
        "candidate_duration": [200.0],  # for quantiles: raw
        "candidate_position": [1, 2],
        "context_scenario": [1],
        "user_user_id": [2],
        "request_user_id": [1],
        "request_time_ms": [now],
        "candidate_count": [2],
        "label_click": [1, 0],
        "label_like": [0, 1],
    }
    assert counts == Counter(impressions=2, requests=1, truncated_histories=1)


def test_counts_of_unknown_empty_and_truncated_histories(joined, row, now):
    rows = [
        row(user=1, time=now),  # four events before: truncated to three
        row(user=1, time=now - 10_000),  # exactly three
        row(user=1, time=now - 40_000),  # its first event is not before it: empty
        row(user=2, time=now),  # its only event comes later: empty, but known
        row(user=3, time=now),  # never seen
    ]
    examples, counts = joined(rows)
    assert [example["history_length"] for example in examples] == [[0], [3], [3], [0], [0]]
    assert counts == Counter(
        impressions=5, requests=5, unknown_users=1, empty_histories=3, truncated_histories=1
    )


def test_reading_in_small_batches_gives_the_same_examples(joined, row, now, monkeypatch):
    rows = [
        row(user=user, time=now + 1000 * step, item=10 + step, click=step % 2)
        for user in (1, 2, 3)
        for step in range(5)
    ]
    whole = joined(rows)
    monkeypatch.setattr(join, "REQUESTS_PER_READ", 2)
    assert joined(rows) == whole


def test_events_at_and_after_the_request_change_no_byte(spec, vault, table_of, row, now):
    requests = group_requests(check_rows(table_of([row(), row(item=11)]), 0, spec).good, spec)

    def examples():
        return [each for part, _ in join_requests(requests, vault, spec) for each in part]

    before = examples()
    vault.append({"user_id": [1], "timestamp": [now], "item_id": [17], "scenario": [1]})
    vault.append({"user_id": [1], "timestamp": [now + 1], "item_id": [18], "scenario": [1]})
    vault.merge()
    assert examples() == before
    vault.append({"user_id": [1], "timestamp": [now - 1], "item_id": [19], "scenario": [1]})
    assert examples() != before


def test_random_logs_equal_a_plain_join(joined, spec, vault, row, now):
    rng = np.random.default_rng(3)
    events = [
        (int(user), now - int(age), int(item))
        for user, age, item in zip(
            rng.integers(4, 8, 60), rng.integers(-50, 50, 60) * 1000, rng.integers(10, 20, 60),
            strict=True,
        )
    ]  # fmt: skip
    user_ids, times, items = zip(*events, strict=True)
    vault.append(
        {"user_id": user_ids, "timestamp": times, "item_id": items, "scenario": [0] * len(events)}
    )
    requests = sorted({(now + int(t) * 1000, int(u)) for u, t in rng.integers(4, 9, (30, 2))})
    examples, _ = joined([row(user=user, time=time) for time, user in requests])
    for (time, user), example in zip(requests, examples, strict=True):
        mine = [(at, order, item) for order, (owner, at, item) in enumerate(events)
                if owner == user and at < time]  # fmt: skip
        newest = [item for _, _, item in sorted(mine, reverse=True)][: spec.max_history]
        assert example["history_item_id"] == [item + 1 for item in newest]
        assert example["request_user_id"] == [user]
