"""Settings of the rank gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StoreAccess:
    """What a SeqVault server asks of its callers.

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
class GatewayOptions:
    """Where the gateway finds what it needs, and where it listens.

    Attributes:
        store: A SeqVault folder (opened for writing), or ``host:port`` of a SeqVault server.
        features: The feature spec, ``features.yaml``.
        model_server: ``host:port`` of TensorFlow Serving's gRPC API.
        model_name: Model to ask for.
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        deadline_seconds: Longest time that one rank request may take.
        threads: Requests worked on at once.
        ready_file: Gets the address as JSON once the gateway listens.
        access: Token and certificates for a SeqVault server.
    """

    store: str
    features: Path
    model_server: str = "127.0.0.1:8500"
    model_name: str = "ranker"
    host: str = "127.0.0.1"
    port: int = 8080
    deadline_seconds: float = 1.0
    threads: int = 4
    ready_file: Path | None = None
    access: StoreAccess = StoreAccess()
