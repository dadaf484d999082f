"""A process ends by a signal, whichever thread gets it and whatever it interrupts."""

import subprocess
import sys

import pytest

INTO = {
    "the main thread": "os.kill(os.getpid(), signal.SIGINT)",
    "another thread": """
threading.Thread(
    target=lambda: (time.sleep(0.2), signal.pthread_kill(threading.get_ident(), signal.SIGTERM))
).start()""",
}


@pytest.mark.parametrize("what", INTO)
def test_a_signal_ends_the_wait_and_is_not_forgotten(what):
    code = f"""
import os, signal, threading, time
from seqvault.end_signals import EndSignals
ended = EndSignals()
assert not ended.wait(0) and not ended.wait(0.01)
{INTO[what]}
assert ended.wait() and ended.wait(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
