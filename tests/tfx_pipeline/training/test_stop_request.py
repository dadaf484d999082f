"""A training that is asked to stop saves its state, whatever the signal interrupted."""

import os
import subprocess
import sys

CODE = """if True:
    import os, signal, sys, threading, time
    from tfx_pipeline.training.stop_request import stop_request

    reader, writer = os.pipe()
    os.dup2(writer, 1)
    sys.stdout.reconfigure(line_buffering=True)

    def stop():
        time.sleep(0.3)  # until the pipe is full
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        time.sleep(0.1)
        while os.read(reader, 1 << 16):
            pass

    threading.Thread(target=stop, daemon=True).start()
    with stop_request() as asked:
        while not asked():
            print("x" * 100)
    os._exit(0)
"""


def test_a_signal_amid_a_print_is_a_request_like_any_other():
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONUNBUFFERED"}
    subprocess.run([sys.executable, "-c", CODE], env=environment, check=True, timeout=30)
