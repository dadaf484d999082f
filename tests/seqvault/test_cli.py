"""The command line: on directories and on servers, for people and for scripts."""

import io
import json
import re
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqvault import Schema, SeqVault, cli
from seqvault.cli import progress, store_commands
from seqvault.cli.parser import parser
from seqvault.service.server import Server

SCHEMA = Schema.from_arrow(pa.schema([("item_id", pa.int64()), ("score", pa.float32())]))
NOW = 1_700_000_000_000


def events(users, seed=0):
    rng = np.random.default_rng(seed)
    count = 5 * len(users)
    return {
        "user_id": np.repeat(np.asarray(users), 5),
        "timestamp": NOW + np.arange(count),
        "item_id": rng.integers(0, 1000, count),
        "score": rng.normal(size=count).astype(np.float32),
    }


@pytest.fixture
def path(tmp_path):
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        vault.append(events(range(4)))
    return str(tmp_path / "vault")


def run(capsys, *arguments):
    """The exit code and the JSON object that was printed."""
    code = cli.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_command_has_an_example_in_its_help(capsys):
    (commands,) = (a for a in parser()._actions if a.dest == "command")
    assert set(commands.choices) == {
        "init", "load", "append", "get", "stats", "verify", "merge", "snapshot", "warm-up", "serve",
        "ingest", "bench", "users",
    }  # fmt: skip
    for name, sub in commands.choices.items():
        text = sub.format_help()
        assert f"example:\n  {'echo' if name == 'append' else 'seqvault ' + name}" in text


def test_help_and_usage_errors_wait_for_no_heavy_import():
    code = (
        "import sys\nfrom seqvault.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'numba', 'pyarrow', 'grpc', 'pandas', 'tqdm'} & set(sys.modules)\n"
        "print('imported:', sorted(heavy))"
    )
    for arguments in (["--help"], ["get", "--help"], ["get", "vault"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.splitlines()[-1] == "imported: []", done


def test_load_takes_folders_in_order_and_keeps_a_shard(tmp_path, capsys):
    folder = tmp_path / "history"
    folder.mkdir()
    users = range(100)
    for number, name in enumerate(("b.parquet", "a.parquet")):
        table = pa.table(events(users, number)).append_column("other", pa.array([1] * 500))
        pq.write_table(table, folder / name)
    (folder / "_temporary.parquet").write_text("not one of them")
    stored = {}
    for name, more in (("all", []), ("0", ["--shard", "0/2"]), ("1", ["--shard", "1/2"])):
        path = str(tmp_path / name)
        SeqVault.open(path, schema=SCHEMA).close()
        code, told = run(capsys, "load", path, str(folder), *more)
        assert code == 0 and told["bytes_per_event"] > 0
        stored[name] = told["events"]
    assert stored["all"] == 1000 == stored["0"] + stored["1"]
    with SeqVault.open(tmp_path / "all", read_only=True) as vault:
        # equal times: a.parquet came first, so b.parquet's are newer
        newest = vault.read([7], before=None, last_n=1)["item_id"][0, 0]
        assert newest == events(users, 0)["item_id"][7 * 5 + 4]
    (tmp_path / "empty").mkdir()
    assert cli.main(["load", str(tmp_path / "all"), str(tmp_path / "empty")]) == 2
    assert "no *.parquet" in capsys.readouterr().err


def test_a_metrics_port_in_use_is_named_and_ends_the_server_in_order(path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "seqvault.cli", "serve", path, "--port", "0"]
        done = subprocess.run(
            [*command, "--metrics-port", str(port)], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port} for metrics" in done.stderr
    assert '"event": "stopped"' in done.stderr


def test_commands_work_on_a_server_as_on_a_directory(path, tmp_path, capsys, monkeypatch):
    _, here = run(capsys, "get", path, "2", "--last-n", "3")
    token = tmp_path / "token"
    token.write_text("secret\n")
    tokens = {"secret": ["read", "write"]}
    with Server(SeqVault.open(path), tokens=tokens, snapshots=str(tmp_path)) as server:
        reach = [f"localhost:{server.port}", "--token-file", str(token)]
        assert run(capsys, "get", *reach, "2", "--last-n", "3") == (0, here)
        line = {"user_id": 9, "timestamp": NOW, "item_id": 1, "score": 0.5}
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(line)))
        assert run(capsys, "append", *reach) == (0, {"events": 1})
        assert run(capsys, "stats", *reach)[1]["events"] == 21
        assert run(capsys, "verify", *reach)[0] == 0
        assert run(capsys, "merge", *reach)[0] == 0
        copy = str(tmp_path / "copy")
        assert run(capsys, "snapshot", *reach, copy) == (0, {"snapshot": copy})
        assert cli.main(["stats", reach[0]]) == 2  # no token
        assert "token" in capsys.readouterr().err
    assert run(capsys, "stats", copy)[1]["events"] == 21


def test_users_are_printed_one_a_line_and_in_pages(path, capsys, monkeypatch):
    with SeqVault.open(path, read_only=True) as vault:
        users = vault.user_ids().tolist()
    assert users
    monkeypatch.setattr(store_commands, "USERS_A_PAGE", 1)  # so that there are pages
    assert run(capsys, "users", path) == (0, {"user_ids": users})
    assert run(capsys, "users", path, "--limit", "1") == (0, {"user_ids": users[:1]})
    assert run(capsys, "users", path, "--after", str(users[0])) == (0, {"user_ids": users[1:]})
    assert cli.main(["users", path]) == 0
    assert capsys.readouterr().out.split() == [str(user) for user in users]
    server = Server(SeqVault.open(path), merge_seconds=0)
    try:
        assert run(capsys, "users", f"localhost:{server.port}") == (0, {"user_ids": users})
    finally:
        server.stop(0)


def test_exit_codes_tell_bad_requests_damage_and_what_may_work_later(path, capsys, tmp_path):
    assert cli.main(["get", path, "1", "--fields", "x"]) == 2
    assert cli.main(["stats", "localhost:1", "--timeout", "2"]) == 4
    with SeqVault.open(path) as vault:
        assert cli.main(["merge", path]) == 4  # locked
        vault.merge()
    (segment,) = (tmp_path / "vault" / "segments").iterdir()
    content = bytearray(segment.read_bytes())
    content[60] ^= 1
    segment.write_bytes(content)
    capsys.readouterr()
    assert cli.main(["verify", path]) == 3
    assert str(segment) in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(["load", path, "x.parquet", "--shard", "3/3"])
    assert caught.value.code == 2


def test_append_names_the_event_that_is_wrong(path, capsys, monkeypatch):
    good = {"user_id": 9, "timestamp": NOW, "item_id": 1, "score": 0.5}
    for line, reason in (
        ("{", "line 2 is not JSON"),
        (json.dumps({**good, "item_id": "1"}), "field 'item_id'"),
        (json.dumps({**good, "more": 1}), "different fields"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{json.dumps(good)}\n{line}\n"))
        assert cli.main(["append", path]) == 2
        assert reason in capsys.readouterr().err
    with SeqVault.open(path, read_only=True) as vault:
        assert vault.stats()["events"] == 20


def test_get_prints_a_table_that_a_person_can_read(path, capsys):
    assert cli.main(["get", path, "2", "--last-n", "2", "--fields", "timestamp,item_id"]) == 0
    title, header, newest, older = capsys.readouterr().out.splitlines()
    assert title == "user 2: 2 events, newest first"
    assert header.split() == ["timestamp", "item_id"]
    assert newest.split()[:2] == ["2023-11-14", "22:13:20.014"]
    assert len({len(line) for line in (header, newest, older)}) == 1


def test_bench_times_reads_and_appends(path, capsys):
    code, told = run(
        capsys, "bench", path, "--seconds", "0.05", "--batch", "3", "--last-n", "4", "--append", "7"
    )
    assert code == 0
    assert list(told["results"]) == ["read 1 user", "read 3 users", "append 7 events"]
    for result in told["results"].values():
        assert result["calls"] >= 1 and 0 < result["p50_ms"] <= result["p99_ms"]
        assert result["events_per_s"] > 0
    with SeqVault.open(path, read_only=True) as vault:
        appended = told["results"]["append 7 events"]["calls"] + 3  # and those that warm up
        assert vault.stats()["events"] == 20 + 7 * appended
    with Server(SeqVault.open(path)) as server:
        target = f"localhost:{server.port}"
        assert cli.main(["bench", target]) == 2
        assert "--users" in capsys.readouterr().err
        assert cli.main(["bench", target, "--users", "0:4", "--seconds", "0.05"]) == 0
        assert "read 64 users" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("command", ["load", "verify", "merge", "snapshot"])
def test_long_commands_tell_their_progress_on_standard_error(
    tmp_path, path, capsys, monkeypatch, command
):
    pq.write_table(pa.table(events(range(4))), tmp_path / "more.parquet")
    with SeqVault.open(path) as vault:  # something stored and something in the log
        vault.merge()
        vault.append(events(range(4), 1))
    (segment,) = (tmp_path / "vault" / "segments").iterdir()
    size = segment.stat().st_size
    arguments = {
        "load": [str(tmp_path / "more.parquet")], "snapshot": [str(tmp_path / "copy")],
    }.get(command, [])  # fmt: skip
    tells = {  # a merge writes the 20 events that these users have on disk once more
        "load": "20 of 20 events", "verify": f"{size:,} of {size:,} bytes",
        "merge": "40 of 40 events", "snapshot": "40 of 40 events",
    }  # fmt: skip
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert cli.main([command, path, *arguments]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"seqvault {command}: ") for line in lines)
    assert f"seqvault {command}: {tells[command]}" in lines
    if command == "snapshot":
        done, total = re.fullmatch(r".*: ([\d,]+) of ([\d,]+) bytes", lines[-1]).groups()
        assert done == total
    # a short command prints no line
    monkeypatch.setattr(progress, "LINE_SECONDS", 10.0)
    arguments = [str(tmp_path / "copy2")] if command == "snapshot" else arguments
    assert cli.main([command, path, *arguments]) == 0
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_for_each_unit(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.ShownProgress("snapshot") as shown:
        for done in (100, 300):
            shown("events", done, 300)
        shown("bytes", 7, 7)
    drawn = terminal.getvalue()
    assert "snapshot: 100%" in drawn
    assert "300/300" in drawn and " events/s" in drawn
    assert "7.00/7.00" in drawn and " bytes/s" in drawn
