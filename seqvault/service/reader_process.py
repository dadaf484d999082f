"""A process that answers reads from the memory of the server that started it.

It is told what to do by a line of JSON on standard input. It ends when another line comes, the
seconds that reads under way have, or when that is closed, as it is when the server ends in
whatever way. On standard output it tells, in lines of JSON, that it
serves, and then each second what it has counted.
"""

import json
import logging
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from seqvault.service.bytes_in_flight import BytesInFlight
from seqvault.service.call_log import CallLog
from seqvault.service.metrics import Metrics
from seqvault.service.read_server import ReadServer
from seqvault.service.tls import server_context
from seqvault.service.tokens import Tokens
from seqvault.service.work_pool import WorkPool
from seqvault.store import SeqVault

TELL_SECONDS = 1.0


def main() -> None:
    """Serves until standard input is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, who ends this process
        signal.signal(number, signal.SIG_IGN)
    settings: dict[str, Any] = json.loads(sys.stdin.readline())
    logging.basicConfig(level=settings["log_level"], format="%(message)s", stream=sys.stderr)
    metrics = Metrics()
    with SeqVault.attach(settings["path"]) as vault:
        vault.read_framed([0], before=None, last_n=1)  # loads kernels that the server has compiled
        server = ReadServer(
            vault,
            settings["host"],
            settings["port"],
            bytes.fromhex(settings["instance"]),
            WorkPool(settings["workers"], "reads", settings["waiting"]),
            BytesInFlight(settings["bytes_in_flight"]),
            metrics,
            CallLog(),
            metrics.count_damage,
            _tokens_of(settings["tokens"]),
            _tls_of(settings["tls"]),
            shared_port=True,
        )
        _tell({"serving": server.port})
        while not select.select([sys.stdin], [], [], TELL_SECONDS)[0]:
            _tell(metrics.take())
        server.stop(float(sys.stdin.readline() or 0))
        _tell(metrics.take())


def _tell(what: dict[str, Any]) -> None:
    if what:
        print(json.dumps(what), flush=True)


def _tokens_of(source: Any) -> Tokens | None:
    return None if source is None else Tokens(Path(source) if isinstance(source, str) else source)


def _tls_of(parts: list[str | None] | None) -> Any:
    if parts is None:
        return None
    key, certificate, client_ca = (None if part is None else part.encode() for part in parts)
    assert key is not None and certificate is not None
    return server_context(key, certificate, client_ca)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the server is gone, and nobody is left to be told
        os._exit(1)
