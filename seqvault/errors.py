"""The exceptions of SeqVault, one type per kind of failure that callers handle differently.

Each error says what was wrong, what was received and what to do. ``retryable``
tells a client whether the same call may succeed later.
"""


class SeqVaultError(Exception):
    """Base class of all SeqVault errors."""

    retryable = False


class InvalidRequestError(SeqVaultError, ValueError):
    """The arguments of a call are wrong: nothing was read or written."""


class UnknownFieldError(InvalidRequestError):
    """A field was asked for, or given, that the schema does not have."""


class WrongTypeError(InvalidRequestError, TypeError):
    """A value has a type that does not fit its field without loss."""


class ValueRangeError(InvalidRequestError):
    """A value lies outside its field's range."""


class TimeUnitError(InvalidRequestError):
    """A time is not in milliseconds since 1970 (seconds, microseconds...)."""


class SchemaError(InvalidRequestError):
    """A schema is invalid, or does not fit the store's schema."""


class StoreNotFoundError(SeqVaultError, FileNotFoundError):
    """There is no store at the path and no schema was given to create one."""


class StoreLockedError(SeqVaultError):
    """Another process, or another object here, has the store open for writing."""

    retryable = True


class StoreClosedError(SeqVaultError):
    """The store was closed."""


class ForkedStoreError(SeqVaultError):
    """The store was opened by the process that this one was forked from: open it again here."""


class NotSharedError(SeqVaultError):
    """No process on this host lets others attach to the store, or not this one."""


class WriterGoneError(StoreClosedError):
    """The process whose memory this one reads has ended or closed the store; attach again."""

    retryable = True


class ReadOnlyError(SeqVaultError):
    """A write was tried on a store that was opened read-only."""


class NewerFormatError(SeqVaultError):
    """The store was written by a newer version than this one can read."""


class DamagedFileError(SeqVaultError):
    """A file is corrupt: its content does not match its checksum."""


class DiskFullError(SeqVaultError, OSError):
    """The disk has no room: nothing of the call was stored, reads go on."""

    retryable = True


class StoreFailedError(SeqVaultError):
    """A write to disk failed and its on-disk state is unknown; the store refuses further writes.

    Reads go on. Reopen the store (better: restart the process) to write again;
    everything acknowledged before is still there.
    """


class LimitError(SeqVaultError):
    """A limit of the store was reached; try a smaller call, or later."""

    retryable = True


class SourceConflictError(SeqVaultError):
    """A conditional append expected another offset of its source: nothing was stored.

    Another writer appended from the same source, or an earlier append whose reply was lost
    succeeded. Read ``stats()["sources"]`` and continue after that offset.
    """

    retryable = True


class ServerUnavailableError(SeqVaultError):
    """The server cannot be reached, or did not answer in time.

    Whether an append arrived is unknown; give appends a source and an offset, and
    calling again is harmless.
    """

    retryable = True


class OlderServerError(SeqVaultError):
    """The server does not know the call: it is older than the client, or no SeqVault server."""


class ProtocolError(SeqVaultError):
    """What came over a connection does not follow the read protocol, or another version of it."""


class AccessDeniedError(SeqVaultError):
    """The token is missing, unknown, expired or not good for this call.

    Or the server's certificate is not of the authority that the client trusts.
    """


class TlsError(AccessDeniedError, ServerUnavailableError):
    """The TLS handshake between client and server fails; the message says which part is wrong."""

    retryable = False


class LogUnavailableError(SeqVaultError):
    """No broker of the event log can be reached."""

    retryable = True


class UnknownTopicError(InvalidRequestError):
    """The event log has no topic of that name."""


class LogGapError(SeqVaultError):
    """The event log no longer holds the events that follow those in the store."""


class MissingPackageError(SeqVaultError, ImportError):
    """A package that an optional part needs is not installed."""
