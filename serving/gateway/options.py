"""Settings of the rank gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class StoreAccess:
    """Credentials for a SeqVault server.

    Attributes:
        token_file: Holds the bearer token; its scopes must be read and write.
        ca: PEM of the authority that signed the server's certificate; None: plain text.
        key: PEM of the gateway's own key, for mutual TLS.
        certificate: PEM of its certificate.
    """

    token_file: Path | None = None
    ca: Path | None = None
    key: Path | None = None
    certificate: Path | None = None


@dataclass(frozen=True)
class Rules:
    """Limits of requests, and the handling of requests that can be answered only in part.

    Attributes:
        deadline_seconds: Longest time from a rank request's first byte to its answer.
        append_seconds: The same for a call that appends events.
        threads: Requests worked on at once.
        waiting: Requests that may wait for a thread.
        max_candidates: Candidates of one request.
        max_events: Events of one call.
        max_ahead_seconds: How far beyond this machine's clock the time of a request or of an
            event may lie.
        refuse_unknown: Refuse candidates that the store does not know or that lie beyond the item
            table; False scores them by their features, and names them in the answer.
        degrade_history: Answer without histories while the store is down, and say so.
        rank_bytes: Length of a rank request's body.
        event_bytes: Length of the body of a call that appends events.
        request_bytes: Memory that one request may take, parsed.
        in_flight_bytes: Memory that all requests under way may take.
        body_seconds: Time for a body to arrive, once it has begun.
    """

    deadline_seconds: float = 1.0
    append_seconds: float = 10.0
    threads: int = 4
    waiting: int = 256
    max_candidates: int = 5000
    max_events: int = 10_000
    max_ahead_seconds: float = 300.0
    refuse_unknown: bool = False
    degrade_history: bool = False
    rank_bytes: int = MIB
    event_bytes: int = 2 * MIB
    request_bytes: int = 16 * MIB
    in_flight_bytes: int = 32 * MIB
    body_seconds: float = 10.0


@dataclass(frozen=True)
class GatewayOptions:
    """Where the gateway finds store, spec and model, and where it listens.

    Attributes:
        store: A SeqVault folder (opened for writing), or ``host:port`` of a SeqVault server.
        features: The feature spec, ``features.yaml``.
        model_server: ``host:port`` of TensorFlow Serving's gRPC API.
        model_base_path: Run the model in this process instead, from ``<number>/saved_model.pb``
            in this folder; loads TensorFlow.
        model_name: Model to ask for.
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        rules: What callers may ask.
        drain_seconds: On SIGTERM, how long requests are still taken while ``/readyz`` says no.
        ready_file: Gets the address as JSON once the gateway listens.
        access: Token and certificates for a SeqVault server.
        impression_log: Folder to which what was shown is logged; None: it is not.
    """

    store: str
    features: Path
    model_server: str = "127.0.0.1:8500"
    model_base_path: Path | None = None
    model_name: str = "ranker"
    host: str = "127.0.0.1"
    port: int = 8080
    rules: Rules = field(default_factory=Rules)
    drain_seconds: float = 3.0
    ready_file: Path | None = None
    access: StoreAccess = StoreAccess()
    impression_log: Path | None = None
