"""``seqvault serve``: serves a store over gRPC until a signal ends it."""

import argparse
import logging
import sys
from pathlib import Path

from seqvault.end_signals import EndSignals
from seqvault.errors import InvalidRequestError, SeqVaultError
from seqvault.service.metrics import serve_metrics
from seqvault.service.server import Server, Tls
from seqvault.service.tokens import Tokens
from seqvault.store import SeqVault

_SWITCH_SECONDS = 0.0005


def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT, then drains calls in progress and closes the store."""
    ended = EndSignals()  # before anything slow: an early SIGTERM ends in order, too
    # A merge's Python may hold up a read for one interval; the default, 5 ms, is many reads long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    tls = _tls_of(arguments)
    tokens = Tokens(Path(arguments.tokens)) if arguments.tokens else None
    vault = SeqVault.open(arguments.path, share=arguments.readers > 0)
    try:
        server = Server(
            vault,
            f"{arguments.host}:{arguments.port}",
            tokens,
            tls,
            merge_seconds=arguments.merge_seconds,
            bytes_in_flight=arguments.mib_in_flight << 20,
            snapshots=arguments.snapshots,
            read_port=arguments.read_port,
            readers=arguments.readers,
        )
    except SeqVaultError:
        vault.close()
        raise
    web = None
    try:
        if arguments.metrics_port is not None:
            web = serve_metrics(arguments.host, arguments.metrics_port, server.metrics_text)
        print(f"serving {vault.path} on {arguments.host}:{server.port}", flush=True)
        ended.wait()
    finally:
        if web is not None:
            web.shutdown()
        server.stop()


def _tls_of(arguments: argparse.Namespace) -> Tls | None:
    if not arguments.tls_key and not arguments.tls_cert and not arguments.tls_client_ca:
        return None
    if not arguments.tls_key or not arguments.tls_cert:
        raise InvalidRequestError("TLS needs both --tls-key and --tls-cert; give them together.")
    return Tls(
        Path(arguments.tls_key).read_bytes(),
        Path(arguments.tls_cert).read_bytes(),
        Path(arguments.tls_client_ca).read_bytes() if arguments.tls_client_ca else None,
    )
