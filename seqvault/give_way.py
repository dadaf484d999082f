"""A writer's turn for readers."""

from __future__ import annotations

import time


def give_way() -> None:
    """Lets readers have a turn now, for which they would wait 5 ms while a writer computes.

    After a sleep of 0 the writer would often go on before a waiting reader has woken up.
    """
    time.sleep(1e-6)
