"""The command line: flags, ready files, what goes wrong at start, and stopping."""

import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml
from serving_helpers import REPOSITORY, make_store, running, save_basic, save_ranker, wait_for

import serving
from serving import start, supervisor
from serving.cli import main
from serving.healthcheck import healthy
from serving.model_server.server_config import read_config
from serving.supervisor import Child

CONFIGURATION = Path(serving.__file__).parent


def post(address, path, content):
    request = urllib.request.Request(f"http://{address}{path}", json.dumps(content).encode())
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_l4_model_server_waits_for_a_model_and_then_opens_its_ports(tmp_path):
    base = tmp_path / "m"
    base.mkdir()
    grpc_port, rest_port = free_port(), free_port()
    ready = tmp_path / "ready.json"
    log = tmp_path / "log"
    command = [
        sys.executable, "-m", "serving.cli", "model-server", "--model_name=m",
        "--model_base_path", str(base), f"--port={grpc_port}", "--rest_api_port", str(rest_port),
        "--file_system_poll_wait_seconds=0.05", "--enable_batching=false",
        "--ready_file", str(ready),
    ]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=output)
    try:
        wait_for(lambda: "No versions of servable m found" in log.read_text(), 120)
        assert f"{base}/<number>/saved_model.pb" in log.read_text()
        assert "ignored: --enable_batching=false" in log.read_text()
        assert not is_open(grpc_port) and not is_open(rest_port) and not ready.exists()
        save_basic(base / "1")
        wait_for(ready.exists, 60)
        content = json.loads(ready.read_text())
        assert content == {
            "grpc": f"127.0.0.1:{grpc_port}",
            "rest": f"127.0.0.1:{rest_port}",
            "pid": process.pid,
        }
        answer = post(content["rest"], "/v1/models/m:predict", {"instances": [[1, 2]]})
        assert answer == {"predictions": [[3.0, 3.0, 3.0]]}
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert not is_open(grpc_port) and not is_open(rest_port)


def test_a_signal_amid_a_lock_ends_start(tmp_path):
    """One that interrupts the main thread while it holds the lock of a condition."""
    code = """if True:
        import argparse, os, signal, sys, threading, time
        from pathlib import Path
        from serving import start

        class Idle:
            name, ended = "gateway", None
            def start(self): pass
            def stop(self, seconds): pass

        usual = threading.Condition.wait

        def wait(condition, timeout=None):
            if threading.current_thread() is threading.main_thread():
                os.kill(os.getpid(), signal.SIGTERM)
            return usual(condition, timeout)

        def send():
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=send, daemon=True).start()
        threading.Condition.wait = wait
        start._children = lambda *_: [Idle()]
        start._has_version = lambda _: True
        sys.exit(start.start(argparse.Namespace(model_base_path=".", drain_seconds=0)))
    """
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=20)


def test_start_runs_both_and_stops_both(tmp_path, spec):
    base = tmp_path / "ranker"
    base.mkdir()
    save_ranker(base / "1", spec)
    store = make_store(tmp_path / "vault", spec)
    spec.save(tmp_path / "features.yaml")
    command = [
        "start", f"--store={store}", f"--features={tmp_path / 'features.yaml'}",
        f"--model_base_path={base}", "--port=auto", "--rest_api_port=auto", "--deadline_ms=20000",
        f"--impression_log={tmp_path / 'shown'}",
    ]  # fmt: skip
    with running(command, tmp_path / "ready.json", 280) as (addresses, process):
        event = {"user_id": 1, "timestamp": 1_700_000_000_000, "item_id": 2}
        assert post(addresses["gateway"], "/v1/events", {"events": [event]}) == {"appended": 1}
        answer = post(addresses["gateway"], "/v1/rank", {"user_id": 1, "candidates": [1, 2]})
        assert [entry["item_id"] for entry in answer["ranked"]] == [2, 1]
        status = urllib.request.urlopen(f"http://{addresses['rest']}/v1/models/ranker", timeout=30)
        assert status.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        for name in ("gateway", "grpc", "rest"):
            assert not is_open(int(addresses[name].split(":")[1]))
        printed = process.stdout.read()
        assert f"http://{addresses['gateway']}" in printed
    (log,) = (tmp_path / "shown").iterdir()  # written to its end before the gateway ended
    assert json.loads(log.read_text())["item_id"] == [2, 1]
    # Nothing holds the store any more, and the event is in it.
    from seqvault import SeqVault

    with SeqVault.open(str(store)) as vault:
        assert vault.read([1], before=None, last_n=5).lengths.tolist() == [1]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("in_process", [False, True])
def test_start_restarts_who_dies_and_leaves_no_orphan(tmp_path, spec, in_process):
    base = tmp_path / "ranker"
    base.mkdir()
    save_ranker(base / "1", spec)
    store = make_store(tmp_path / "vault", spec)
    spec.save(tmp_path / "features.yaml")
    command = [
        "start", f"--store={store}", f"--features={tmp_path / 'features.yaml'}",
        f"--model_base_path={base}", "--port=auto", "--deadline_ms=20000", "--drain_seconds=0.5",
        *(["--in_process"] if in_process else []),
    ]  # fmt: skip

    def ranks(addresses):
        try:
            answer = post(addresses["gateway"], "/v1/rank", {"user_id": 1, "candidates": [2, 1]})
        except OSError:
            return False
        return [entry["item_id"] for entry in answer["ranked"]] == [2, 1]

    with running(command, tmp_path / "ready.json", 280) as (addresses, process):
        wait_for(lambda: ranks(addresses), 60)
        children = children_of(process.pid)
        assert len(children) == (1 if in_process else 2)
        for child in children:
            os.kill(child, signal.SIGKILL)
            wait_for(lambda child=child: not is_running(child), 30)
        # Both come back, where clients look for them.
        wait_for(lambda: ranks(addresses), 120)
        restarted = children_of(process.pid)
        assert not set(restarted) & set(children)
        process.kill()
        process.wait(30)
        wait_for(lambda: not any(map(is_running, restarted)), 60)
        printed = process.stdout.read()
    assert "gateway ended with code -9; it starts again in 1 s" in printed
    assert "gateway started again as process" in printed


def test_a_child_that_cannot_be_started_again_now_is_started_later(monkeypatch, caplog):
    class Dead:
        stdin = io.BytesIO()
        pid = 5

        def poll(self):
            return 1

    child = Child("gateway", list, process=Dead(), pause=0.0)
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE_SECONDS", 0.0)
    failures = [OSError(errno.EAGAIN, "Resource temporarily unavailable")]

    def start(*arguments, **more):
        if failures:
            raise failures.pop()
        return Dead()

    monkeypatch.setattr(supervisor.subprocess, "Popen", start)
    child.keep_running()
    assert child.process is None and "gateway cannot be started" in caplog.text
    child.keep_running()
    assert child.process is not None and child.restarts == 2


def test_what_speaks_no_http_is_not_healthy():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"\0\0\6\4 no HTTP at all\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert not healthy(f"http://127.0.0.1:{port}/readyz")
        thread.join()


def test_sigterm_drains_the_gateway(tmp_path, spec):
    """Not ready at once, still there for a while, and every answer the last of its connection."""
    store = make_store(tmp_path / "vault", spec)
    spec.save(tmp_path / "features.yaml")
    command = [
        "gateway", f"--store={store}", f"--features={tmp_path / 'features.yaml'}",
        "--model_server=127.0.0.1:1", "--port=auto", "--drain_seconds=2",
    ]  # fmt: skip
    with running(command, tmp_path / "ready.json") as (addresses, process):
        connection = HTTPConnection(addresses["gateway"], timeout=30)
        event = {"user_id": 1, "timestamp": 1_700_000_000_000, "item_id": 2}
        body = json.dumps({"events": [event]})
        connection.request("POST", "/v1/events", body)
        kept = connection.getresponse()
        kept.read()
        assert kept.getheader("Connection") != "close"
        process.terminate()
        wait_for(lambda: "draining" in readiness(addresses["gateway"]))
        connection.request("POST", "/v1/events", body)
        last = connection.getresponse()
        assert (last.status, last.getheader("Connection")) == (200, "close")
        last.read()
        connection.close()
        assert process.wait(60) == 0


def readiness(address: str) -> str:
    connection = HTTPConnection(address, timeout=30)
    connection.request("GET", "/readyz")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_start_tells_in_one_line_what_it_cannot_do(tmp_path, monkeypatch, capsys):
    stopped = []

    class Idle:
        name, ended = "gateway", None

        def start(self):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        def stop(self, seconds):
            stopped.append(seconds)

    monkeypatch.setattr(start, "_children", lambda *_: [Idle()])
    monkeypatch.setattr(start, "_has_version", lambda _: True)
    monkeypatch.setattr(start, "EndSignals", lambda: None)
    assert main(["start", "--store=s", "--features=f", f"--model_base_path={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "laser-serving start: [Errno 12] Cannot allocate memory" and stopped


@pytest.mark.parametrize("base", ["missing", "empty"])
def test_start_without_a_pushed_model(tmp_path, capsys, base):
    (tmp_path / "empty").mkdir()
    # Neither store nor spec is there either: the line shows that nothing was started.
    code = main(["start", "--store=s", "--features=f", f"--model_base_path={tmp_path / base}"])
    assert code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"no model was pushed to {tmp_path / base}" in line and "laser-pipeline run" in line


def test_start_ends_when_one_of_them_fails(tmp_path, spec, capfd):
    spec.save(tmp_path / "features.yaml")
    (tmp_path / "1").mkdir()
    command = [
        sys.executable, "-m", "serving.cli", "start", f"--store={tmp_path / 'nowhere'}",
        f"--features={tmp_path / 'features.yaml'}", f"--model_base_path={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert str(tmp_path / "nowhere") in done.stderr
    assert "gateway ended with code 1" in done.stderr


@pytest.fixture
def taken():
    """A port that something listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_model_server_port_in_use(basic_model, taken, capsys, flag):
    other = "--rest_api_port=0" if flag == "--port" else "--port=0"
    code = main(["model-server", f"--model_base_path={basic_model}", f"{flag}={taken}", other])
    assert code == 255
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "in use" in line and str(taken) in line and flag in line


def test_l7_model_that_does_not_load_ends_the_server(tmp_path, capsys):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"half")
    code = main(
        ["model-server", "--port=auto", f"--model_base_path={tmp_path}", "--max_num_load_retries=0"]
    )
    assert code == 255
    text = capsys.readouterr().err
    assert "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available:" in text


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "--model_base_path"),
        (["--model_base_path=models"], "absolute path"),
        (["--model_config_file=/nowhere.config"], "/nowhere.config"),
    ],
)
def test_model_server_without_a_model(capsys, flags, text):
    assert main(["model-server", *flags]) == 255
    assert text in capsys.readouterr().err


def gateway(tmp_path, spec, *flags, features=None):
    spec.save(tmp_path / "features.yaml")
    return main(["gateway", f"--features={features or tmp_path / 'features.yaml'}", *flags])


def test_gateway_without_a_store(tmp_path, spec, capsys):
    assert gateway(tmp_path, spec, f"--store={tmp_path / 'nowhere'}") == 1
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_gateway_without_a_feature_spec(tmp_path, spec, capsys):
    assert gateway(tmp_path, spec, f"--store={tmp_path}", features="/nowhere.yaml") == 1
    assert "/nowhere.yaml" in capsys.readouterr().err


def test_gateway_with_a_store_of_another_spec(tmp_path, spec, capsys):
    import pyarrow as pa

    from seqvault import Schema, SeqVault

    schema = Schema.from_arrow(pa.schema([("item_id", pa.int64())]))
    SeqVault.open(str(tmp_path / "vault"), schema=schema).close()
    assert gateway(tmp_path, spec, f"--store={tmp_path / 'vault'}") == 1
    text = capsys.readouterr().err
    assert "does not fit the feature spec 'tiny'" in text and "scenario" in text


def test_gateway_with_a_field_of_another_type(tmp_path, spec, capsys):
    import pyarrow as pa

    from seqvault import Schema, SeqVault

    schema = Schema.from_arrow(pa.schema([("item_id", pa.int64()), ("scenario", pa.int32())]))
    vault = SeqVault.open(str(tmp_path / "vault"), schema=schema)
    vault.put_items({"item_id": [1], "author_id": [1], "tag": [1], "length_ms": [1]})
    vault.close()
    assert gateway(tmp_path, spec, f"--store={tmp_path / 'vault'}") == 1
    assert "'scenario' is int32 in the store and int8 in the spec" in capsys.readouterr().err


def test_gateway_port_in_use(tmp_path, spec, taken, capsys):
    store = make_store(tmp_path / "vault", spec)
    assert gateway(tmp_path, spec, f"--store={store}", f"--port={taken}") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(taken) in line and "in use" in line and "--port" in line


def test_gateway_store_that_is_open_elsewhere(tmp_path, spec, capsys):
    from seqvault import SeqVault

    store = make_store(tmp_path / "vault", spec)
    with SeqVault.open(str(store)):
        assert gateway(tmp_path, spec, f"--store={store}") == 1
    assert "vault" in capsys.readouterr().err


def test_gateway_with_a_seqvault_server(tmp_path, spec):
    """The gateway as a process, the store behind an address."""
    from seqvault import SeqVault
    from seqvault.service.server import Server

    server = Server(SeqVault.open(str(make_store(tmp_path / "vault", spec))))
    spec.save(tmp_path / "features.yaml")
    command = [
        "gateway", f"--store=127.0.0.1:{server.port}", f"--features={tmp_path / 'features.yaml'}",
        "--model_server=127.0.0.1:1", "--port=auto", "--deadline_ms=30000",
    ]  # fmt: skip
    with running(command, tmp_path / "ready.json") as (addresses, process):
        event = {"user_id": 1, "timestamp": 1_700_000_000_000, "item_id": 2}
        assert post(addresses["gateway"], "/v1/events", {"events": [event]}) == {"appended": 1}
        process.terminate()
        assert process.wait(60) == 0
    assert server.vault.read([1], before=None, last_n=1)["item_id"].tolist() == [[2]]
    server.stop(0.1)


def self_signed(folder):
    """PEM paths of a key and of a certificate for localhost."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_gateway_with_a_seqvault_server_that_asks_for_a_token_and_a_certificate(
    tmp_path, spec, capsys
):
    from seqvault import SeqVault
    from seqvault.service.server import Server, Tls

    key, certificate = self_signed(tmp_path)
    token = tmp_path / "token"
    token.write_text("secret\n")
    vault = SeqVault.open(str(make_store(tmp_path / "vault", spec)))
    pem = certificate.read_bytes()
    tls = Tls(key.read_bytes(), pem, client_ca=pem)
    with Server(vault, tokens={"secret": ["read", "write"]}, tls=tls) as server:
        spec.save(tmp_path / "features.yaml")
        flags = {
            "--seqvault-token-file": token, "--seqvault-ca": certificate,
            "--seqvault-client-key": key, "--seqvault-client-cert": certificate,
        }  # fmt: skip
        access = [f"{name}={file}" for name, file in flags.items()]
        store = f"--store=localhost:{server.port}"
        command = ["gateway", store, f"--features={tmp_path / 'features.yaml'}", *access]
        command += ["--model_server=127.0.0.1:1", "--port=auto", "--deadline_ms=30000"]
        with running(command, tmp_path / "ready.json") as (addresses, process):
            event = {"user_id": 1, "timestamp": 1_700_000_000_000, "item_id": 2}
            assert post(addresses["gateway"], "/v1/events", {"events": [event]}) == {"appended": 1}
            process.terminate()
            assert process.wait(60) == 0
        assert gateway(tmp_path, spec, store, *access[1:]) == 1
        assert "token" in capsys.readouterr().err
        assert gateway(tmp_path, spec, store, "--seqvault-token-file=/nowhere", *access[1:]) == 1
        assert "/nowhere" in capsys.readouterr().err


def test_start_hands_the_flags_for_a_seqvault_server_on_to_the_gateway():
    from serving.cli import _parser
    from serving.start import _access_flags

    given = ["--seqvault-token-file=t", "--seqvault-ca=c"]
    more = ["--store=s:1", "--features=f", "--model_base_path=m"]
    assert _access_flags(_parser().parse_args(["start", *more, *given])) == given


def test_gateway_does_not_load_tensorflow():
    code = (
        "import sys, serving.cli, serving.gateway.gateway; "
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_wrong_port():
    for port in ("65536", "-1", "http"):
        with pytest.raises(SystemExit) as caught:
            main(["gateway", "--store=s", "--features=f", f"--port={port}"])
        assert caught.value.code == 2


# What TensorFlow Serving itself reads


def test_models_config_is_read_by_the_published_message():
    (model,) = read_config(CONFIGURATION / "tf_serving" / "models.config")
    assert (model.name, str(model.base_path)) == ("ranker", "/models/ranker")


def test_compose_file_names_files_and_flags_that_exist():
    deploy = CONFIGURATION / "deploy"
    services = yaml.safe_load((deploy / "docker-compose.yml").read_text())["services"]
    named = set()
    for flag in services["model-server"]["command"]:
        value = flag.partition("=")[2]
        if value.startswith("/config/"):
            named.add(Path(value).name)
    # Every file that is mounted is passed, and none that is not there.
    assert named == {path.name for path in (CONFIGURATION / "tf_serving").iterdir()}
    assert "--enable_batching" in services["model-server"]["command"]
    for service in services.values():
        assert service["healthcheck"]["test"]
    assert services["gateway"]["depends_on"]["model-server"]["condition"] == "service_started"
    build = services["gateway"]["build"]
    root = (deploy / build["context"]).resolve()
    dockerfile = (root / build["dockerfile"]).read_text()
    for source in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        for name in source.split():
            assert (root / name).exists(), name
    from serving.cli import _parser

    _parser().parse_args(["gateway", *services["gateway"]["command"]])
