"""Replication by consuming an ordered log: a Kafka topic into one store."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from seqvault.errors import (
    LogGapError,
    LogUnavailableError,
    MissingPackageError,
    SeqVaultError,
    SourceConflictError,
    UnknownTopicError,
)
from seqvault.ingest.dead_letters import DeadLetters
from seqvault.ingest.messages import Columns, decode, joined
from seqvault.prometheus_text import family
from seqvault.store import SeqVault

if TYPE_CHECKING:
    from seqvault.service.client import SeqVaultClient

    Store = SeqVault | SeqVaultClient

LOG = logging.getLogger("seqvault.ingest")
BATCH_MESSAGES = 10_000
LINGER_SECONDS = 0.1  # how long a batch may wait to become full
BROKER_SECONDS = 10.0  # how long a broker may take to tell of a topic
LONGEST_WAIT = 30.0  # seconds between tries when the store cannot take events
REPORT_SECONDS = 10.0
COUNTS = {
    "messages": "Messages that were read.",
    "events": "Events that were stored.",
    "malformed": "Messages that hold no event.",
    "retries": "Tries that the store could not take.",
}
Answer = TypeVar("Answer")


def source_of(topic: str, partition: int) -> str:
    """The name of a partition as a source of events.

    >>> source_of("events", 3)
    'kafka/events/3'
    """
    return f"kafka/{topic}/{partition}"


class KafkaIngest:
    """Appends every event of a topic to a store, each exactly once.

    Offsets are kept in the store: an append stores a partition's events and their last offset
    atomically, and at the start and after every rebalance consumption resumes after the offsets in
    ``stats()["sources"]``. Offsets committed to the broker (for tools that show the lag) are never
    read. Not thread-safe, except for ``stop``.

    Args:
        store: a store open for writing, or a client of one server.
        brokers: ``host:port``, comma-separated.
        topic: where events are; for the formats see ``ingest.messages.columns_of``.
        group: consumer group. Consumers of one group share the partitions, so all of them
            must write to the same store; every store needs a group of its own.
        dead_letters: gets malformed messages.
        keep: which events are this store's, as a mask; None: all.
        config: more properties of librdkafka, for instance ``sasl.username``.

    Raises:
        MissingPackageError: confluent-kafka is not installed.
        LogUnavailableError: no broker answers within ten seconds.
        UnknownTopicError: there is no such topic.
    """

    def __init__(
        self,
        store: "Store",
        brokers: str,
        topic: str,
        group: str,
        dead_letters: DeadLetters,
        keep: Callable[[Columns], Any] | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        self._kafka = _confluent_kafka()
        self._store, self.topic, self._keep = store, topic, keep
        self._dead = dead_letters
        self._stopping = False
        self._next: dict[int, int] = {}  # offset to go on from, by assigned partition
        self._known: dict[int, int] = {}  # highest offset in the store, by assigned partition
        self._ends: dict[int, int] = {}  # where the log ended at the assignment
        self._quiet: dict[int, int] = {}  # offset where the broker had no more messages
        self.counts = dict.fromkeys(COUNTS, 0)
        self._failures = 0  # appends refused one after the other
        self._reported = self._warned = 0.0
        self._consumer = self._kafka.Consumer(
            {
                "allow.auto.create.topics": False,
                **(config or {}),
                "bootstrap.servers": brokers,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",  # never jump over events
                "partition.assignment.strategy": "range,roundrobin",
                "error_cb": _log_error,
                "logger": LOG,
            }
        )
        try:
            self._check_topic(brokers)
        except BaseException:
            self._consumer.close()
            raise
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked)

    # ---- where to go on

    def _check_topic(self, brokers: str) -> None:
        try:
            topics = self._consumer.list_topics(self.topic, timeout=BROKER_SECONDS).topics
        except self._kafka.KafkaException as error:
            raise LogUnavailableError(
                f"no Kafka broker at {brokers} answers ({error.args[0].str()}); check the address, "
                "and with --kafka-config what the broker asks for."
            ) from None
        known = topics.get(self.topic)
        if known is None or known.error is not None or not known.partitions:
            raise UnknownTopicError(
                f"the brokers at {brokers} have no topic {self.topic!r}; create it, or correct "
                "the name."
            )

    def _assigned(self, consumer: Any, partitions: list[Any]) -> None:
        """Seeks every partition assigned to this consumer to just after what the store has."""
        self._next, self._known, self._ends, self._quiet = {}, {}, {}, {}
        if partitions:
            sources = self._patiently(lambda: self._store.stats()["sources"])
            for partition in partitions:
                self._place(partition, sources.get(source_of(self.topic, partition.partition), -1))
        consumer.assign(partitions)

    def _revoked(self, consumer: Any, partitions: list[Any]) -> None:
        for partition in partitions:
            for table in (self._next, self._known, self._ends, self._quiet):
                table.pop(partition.partition, None)

    def _place(self, partition: Any, stored: int) -> None:
        """Sets the partition's offset behind the store's; raises if the log has a gap there."""
        number = partition.partition
        low, high = self._patiently(
            lambda: self._consumer.get_watermark_offsets(partition, timeout=BROKER_SECONDS)
        )
        done = max(stored, self._dead.last_offset(self.topic, number))
        if done >= high:
            raise LogGapError(
                f"the store has {source_of(self.topic, number)} up to offset {done}, but the log "
                f"ends before {high}: the topic was recreated or lost messages. Use another topic "
                "name, or begin a new store."
            )
        if 0 <= done < low - 1:
            raise LogGapError(
                f"the store has {source_of(self.topic, number)} up to offset {done}, but the log "
                f"begins at {low}: events between were deleted there. Begin from a snapshot of a "
                "replica that has them."
            )
        partition.offset = max(stored + 1, low)
        self._known[number], self._next[number] = stored, partition.offset
        self._ends[number] = high
        LOG.info(
            json.dumps(
                {"event": "assigned", "source": source_of(self.topic, number),
                 "from": partition.offset, "end": high}
            )
        )  # fmt: skip

    def _go_back(self) -> None:
        """Resets the positions of all assigned partitions to those of the store."""
        partitions = [self._kafka.TopicPartition(self.topic, number) for number in self._next]
        self._assigned(self._consumer, partitions)

    # ---- consuming

    def stop(self) -> None:
        """Makes ``run`` return after the batch under way; may be called from a signal handler."""
        self._stopping = True

    def run(self, once: bool = False, progress: Callable[[int], Any] | None = None) -> None:
        """Consumes until ``stop``.

        Args:
            once: end when everything is stored that was in the log at the assignment.
            progress: called with the number of messages after each batch.

        Raises:
            LogGapError: going on would lose events.
            SeqVaultError: the store cannot take events for a reason that time does not mend.
        """
        while not self._stopping:
            done = self._take(self._consumer.consume(BATCH_MESSAGES, LINGER_SECONDS))
            if progress is not None:
                progress(done)
            self._report()
            if once and self._at_end():
                return

    def _at_end(self) -> bool:
        """Whether all is stored that was in the log at the assignment."""
        # The last offsets may be marks of transactions, which never come as messages.
        return bool(self._ends) and all(
            max(self._next[number], self._quiet.get(number, 0)) >= end
            for number, end in self._ends.items()
        )

    def _take(self, messages: Iterable[Any]) -> int:
        """Stores a batch; returns how many messages it had."""
        of_partition: dict[int, list[Any]] = defaultdict(list)
        eofs = []
        for message in messages:
            if message.error() is None:
                of_partition[message.partition()].append(message)
            elif message.error().code() == self._kafka.KafkaError._PARTITION_EOF:
                eofs.append(message)
            else:
                self._check(message)
        for partition, given in of_partition.items():
            if not self._store_messages(partition, given):
                return 0
        for message in eofs:
            self._quiet[message.partition()] = message.offset()
        return sum(map(len, of_partition.values()))

    def _check(self, message: Any) -> None:
        error = message.error()
        if error.code() in (
            self._kafka.KafkaError._AUTO_OFFSET_RESET,
            self._kafka.KafkaError.OFFSET_OUT_OF_RANGE,
        ):
            raise LogGapError(
                f"{source_of(message.topic(), message.partition())} cannot go on: {error.str()}. "
                "Events were deleted before they were read; begin from a snapshot of a replica."
            )
        if error.code() in (
            self._kafka.KafkaError.UNKNOWN_TOPIC_OR_PART,
            self._kafka.KafkaError._UNKNOWN_TOPIC,
        ):
            raise UnknownTopicError(f"the topic {self.topic!r} is gone: {error.str()}.")
        if error.fatal():
            raise SeqVaultError(f"the Kafka client cannot go on: {error.str()}.")
        _log_error(error)

    def _store_messages(self, partition: int, given: list[Any]) -> bool:
        """Appends a partition's messages; False: positions were taken from the store again."""
        known = self._known.get(partition)
        if known is None or partition not in self._next:
            return True  # not ours any more: whoever has it begins where the store ends
        messages = [m for m in given if m.offset() >= self._next[partition]]
        if not messages:
            return True
        parts, reasons = decode([message.value() for message in messages], self._store.schema)
        for place, reason in reasons.items():
            self._bury(messages[place], reason)
        if reasons:
            self._dead.sync()  # before the offset moves past them
        columns = joined(parts, self._store.schema)
        if self._keep is not None:
            mine = self._keep(columns)
            columns = {name: values[mine] for name, values in columns.items()}
        last = messages[-1].offset()
        try:
            stored = self._append(columns, partition, last, known)
        except SeqVaultError as error:
            if not error.retryable:
                raise
            if not isinstance(error, SourceConflictError):
                self._wait(error, self._failures)
                self._failures += 1
            self._go_back()
            return False
        self._failures = 0
        self._next[partition] = last + 1
        if len(columns["user_id"]):
            self._known[partition] = last
        self.counts["messages"] += len(messages)
        self.counts["events"] += stored
        self._commit(partition, last + 1)
        return True

    def _append(self, columns: Columns, partition: int, last: int, known: int) -> int:
        source = source_of(self.topic, partition)
        if isinstance(self._store, SeqVault):  # we are its one writer
            return self._store.append(columns, source, last)
        return self._store.append(columns, source, last, after=known)

    def _bury(self, message: Any, reason: str) -> None:
        new = self._dead.add(
            self.topic,
            message.partition(),
            message.offset(),
            reason,
            message.key(),
            message.value(),
        )
        self.counts["malformed"] += new
        if new and time.monotonic() - self._warned >= 1.0:  # one line a second, whatever comes
            self._warned = time.monotonic()
            LOG.warning(
                json.dumps(
                    {
                        "event": "malformed message",
                        "source": source_of(self.topic, message.partition()),
                        "offset": message.offset(),
                        "reason": reason,
                        "so_far": self.counts["malformed"],
                    }
                )
            )

    def _commit(self, partition: int, offset: int) -> None:
        """Commits offsets to the broker, only for tools that show the lag."""
        place = self._kafka.TopicPartition(self.topic, partition, offset)
        try:
            self._consumer.commit(offsets=[place], asynchronous=True)
        except self._kafka.KafkaException as error:
            LOG.info(json.dumps({"event": "commit failed", "error": error.args[0].str()}))

    # ---- waiting

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """Retries a call with backoff as long as its errors are retryable."""
        tries = 0
        while True:
            try:
                return call()
            except SeqVaultError as error:
                if not error.retryable or self._stopping:
                    raise
                self._wait(error, tries)
            except self._kafka.KafkaException as error:
                if self._stopping:
                    raise
                self._wait(error.args[0].str(), tries)
            tries += 1

    def _wait(self, error: object, tries: int) -> None:
        self.counts["retries"] += 1
        LOG.warning(json.dumps({"event": "trying again", "error": str(error)}))
        until = time.monotonic() + min(LONGEST_WAIT, 0.1 * 2 ** min(tries, 10))
        while time.monotonic() < until and not self._stopping:
            time.sleep(0.05)

    # ---- telling

    def lag(self) -> dict[int, int]:
        """Messages not taken yet, by partition, as far as the client knows."""
        behind = {}
        for number, place in list(self._next.items()):
            partition = self._kafka.TopicPartition(self.topic, number)
            known = self._consumer.get_watermark_offsets(partition, cached=True)
            behind[number] = max(0, (known[1] if known else self._ends.get(number, 0)) - place)
        return behind

    def metrics_text(self) -> str:
        """Counts and lag in Prometheus' text format."""
        lines: list[str] = []
        for name, value in self.counts.items():
            full = f"seqvault_ingest_{name}_total"
            lines += family(full, "counter", COUNTS[name], [({}, value)])
        behind = [
            ({"topic": self.topic, "partition": number}, lag)
            for number, lag in sorted(self.lag().items())
        ]
        lines += family("seqvault_ingest_lag", "gauge", "Messages that are to be read.", behind)
        return "\n".join(lines) + "\n"

    def _report(self) -> None:
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            LOG.info(json.dumps({"event": "progress", **self.counts, "lag": self.lag()}))

    def close(self) -> None:
        """Leaves the group; the store and the dead letters stay open."""
        self._consumer.close()


def _confluent_kafka() -> Any:
    try:
        import confluent_kafka
    except ImportError:
        raise MissingPackageError(
            "ingesting from Kafka needs confluent-kafka, which is not installed: "
            "pip install 'laser-ranking[kafka]'."
        ) from None
    return confluent_kafka


def _log_error(error: Any) -> None:
    LOG.warning(json.dumps({"event": "kafka", "error": error.str()}))
