# Over 400 lines: every command's arguments and what it calls, side by side.
"""``laser-pipeline``: prepare a dataset, load it, run the pipeline, look at runs, compile it."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from components.heartbeat import heartbeat
from components.uris import scheme_of
from seqvault.end_signals import EndSignals
from tfx_pipeline.errors import PipelineError, ServerLostError
from tfx_pipeline.explain_error import explain
from tfx_pipeline.locations import local_folder, store_address

if TYPE_CHECKING:
    from tfx_pipeline.config import PipelineConfig

# TensorFlow and TFX take half a minute of processor time to import: only commands that need them
# do, inside their functions.

EXIT_INTERRUPTED = 130
EXIT_SERVER_LOST = 75  # as of a chief in ``tfx_pipeline.training.cluster``
_WATCH_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Example:
        >>> main(["status", "--work", "no-such-folder"])
        1
    """
    arguments = _parser().parse_args(argv)
    _prepare_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress in a log or pipe comes as it happens
    signal.signal(signal.SIGTERM, _interrupt)
    if arguments.begins_with:  # before anything slow is imported
        print(arguments.begins_with)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt as stopped:
        print(f"laser-pipeline: {stopped or 'interrupted'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        line = explain(error, getattr(arguments, "work", None))
        print(f"laser-pipeline: error: {line}", file=sys.stderr)
        if isinstance(error, ServerLostError):
            return EXIT_SERVER_LOST
        return int(getattr(error, "exit_code", 1))


def run_and_exit(argv: Sequence[str] | None = None) -> None:
    """What the program ``laser-pipeline`` is: ``main``, and then the end of the process."""
    code = main(argv)
    training = sys.modules.get("tfx_pipeline.training.cluster")
    if training is not None and training.is_chief():
        # TensorFlow would first take leave of every server and worker; of one that does not come
        # back it waits for ever.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="laser-pipeline", description=__doc__)
    parser.set_defaults(begins_with="")
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('laser-ranking')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="turn a dataset into a prepared dataset")
    prepare.set_defaults(run=_prepare)
    prepare.add_argument(
        "--source", type=local_folder, help="published files; without it a dataset is generated"
    )
    prepare.add_argument("--data", type=local_folder, required=True, help="folder to write")
    prepare.add_argument(
        "--store",
        type=store_address,
        help="SeqVault with the events that label what a gateway logged, in place of "
        "events.parquet in the source",
    )
    prepare.add_argument(
        "--preset",
        help="of the generated dataset: demo (default), long, counts or presence",
    )
    for name in ("users", "items", "requests", "seed"):
        prepare.add_argument(f"--{name}", type=int, help=f"{name} of the generated dataset")

    load = commands.add_parser("load", help="load a prepared dataset into a new SeqVault")
    load.set_defaults(run=_load, begins_with="reading the dataset")
    _add_folders(load, "data", "store")
    load.add_argument(
        "--recent-hours",
        type=_hours,
        default=24,
        help="events of the last hours go through the durable log (default %(default)s)",
    )
    load.add_argument("--replace", action="store_true", help="replace a store that is there")

    run = commands.add_parser("run", help="run the pipeline on this machine")
    run.set_defaults(run=_run, begins_with="checking config, dataset and store")
    _add_folders(run, "data", "work")
    _add_store(run)
    _add_config(run)
    spans = run.add_mutually_exclusive_group()
    spans.add_argument(
        "--span",
        dest="spans",
        metavar="DAY",
        help="a local day such as 2022-05-05: train on it from the last blessed model on, evaluate "
        "on the next day, push if that is good; in place of the config's splits",
    )
    spans.add_argument(
        "--spans", metavar="FIRST:LAST", help="the same for each day, such as 2022-05-05:2022-05-14"
    )
    run.add_argument(
        "--cold-start",
        action="store_true",
        help="begin the first span's training from nothing, for instance with another model",
    )

    train = commands.add_parser(
        "train", help="train on the Examples of an earlier run, in one process or over a cluster"
    )
    train.set_defaults(run=_train)
    _add_folders(train, "data", "work")
    train.add_argument(
        "--output",
        type=local_folder,
        required=True,
        help="folder: checkpoints, logs, model; the same again goes on from the last checkpoint",
    )
    train.add_argument(
        "--cluster",
        help="roles on this machine, such as local:ps=2,workers=2; without it the config's. Where "
        "TF_CONFIG names a cluster, this process is its chief",
    )
    train.add_argument("--examples", type=Path, help="folder of Examples (default: the newest)")
    train.add_argument(
        "--feature-host",
        action="append",
        metavar="HOST:PORT",
        help="read batches from feature hosts in place of Examples; give the option for each",
    )
    train.add_argument("--transform", type=Path, help="Transform's output (default: the newest)")
    _add_config(train)

    host = commands.add_parser(
        "feature-host",
        help="join requests with histories on demand and stream batches to training workers",
        description="Joins the requests of a dataset with the histories of its SeqVault when a "
        "training asks for them, and streams the batches, compressed. Ends by SIGTERM or Ctrl-C; "
        "a host that is lost is replaced by starting another one with the same arguments. "
        "GET /metrics at its address is for Prometheus. Exit codes: 0 ended, 1 bad input, 73 the "
        "address is in use.",
    )
    host.set_defaults(run=_feature_host, begins_with="reading the requests")
    _add_folders(host, "data")
    _add_store(host)
    host.add_argument(
        "--listen",
        required=True,
        metavar="HOST:PORT",
        help="address for trainers; each stream has a port of its own there, chosen by the system",
    )
    _add_config(host)

    profile = commands.add_parser(
        "profile", help="trace training steps on the Examples of an earlier run, for TensorBoard"
    )
    profile.set_defaults(run=_profile)
    _add_folders(profile, "data", "work")
    profile.add_argument(
        "--output", type=local_folder, required=True, help="folder: `tensorboard --logdir` of it"
    )
    profile.add_argument("--steps", type=int, default=20, help="steps (default %(default)s)")
    profile.add_argument("--examples", type=Path, help="folder of Examples (default: the newest)")
    profile.add_argument("--transform", type=Path, help="Transform's output (default: the newest)")
    _add_config(profile)

    check = commands.add_parser(
        "check", help="check config, dataset and store, and show what a run would do"
    )
    check.set_defaults(run=_check, begins_with="checking config, dataset and store")
    _add_folders(check, "data", "work")
    _add_store(check)
    _add_config(check)

    settings = commands.add_parser("settings", help="every entry of a config file")
    settings.set_defaults(run=_settings)
    settings.add_argument(
        "--json-schema", action="store_true", help="as a JSON schema, for editors"
    )

    compare = commands.add_parser("compare", help="systems beside one another, over seeds")
    compare.set_defaults(run=_compare)
    compare.add_argument(
        "--config", type=Path, required=True, help="YAML file of systems and seeds"
    )
    _add_folders(compare, "data")
    compare.add_argument(
        "--work",
        type=local_folder,
        required=True,
        help="folder: results; the same one again goes on",
    )
    compare.add_argument(
        "--store", type=store_address, help="its SeqVault; without it one is loaded within --work"
    )
    compare.add_argument("--jobs", type=int, help="runs side by side (default: one per two cores)")

    status = commands.add_parser("status", help="what past runs did")
    status.set_defaults(run=_status)
    _add_folders(status, "work")
    status.add_argument(
        "--watch", action="store_true", help="show every change until the run that goes on ends"
    )

    compiler = commands.add_parser("compile", help="compile the pipeline for another runner")
    compiler.set_defaults(run=_compile, begins_with="checking config, dataset and store")
    compiler.add_argument("--target", choices=["kubeflow"], required=True)
    compiler.add_argument("--output", type=local_folder, required=True, help="YAML file to write")
    compiler.add_argument("--image", help="container image with this package")
    _add_folders(compiler, "data", "work")
    _add_store(compiler)
    _add_config(compiler)

    ops = commands.add_parser(
        "build-ops", help="compile the ops that training.transmission's zstd needs"
    )
    ops.set_defaults(run=_build_ops)

    demo = commands.add_parser("demo", help="the whole way, from events to a rank answer")
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--data", type=local_folder, help="a dataset's folder; without it one is generated"
    )
    demo.add_argument(
        "--work",
        type=local_folder,
        default=Path(".laser"),
        help="folder; each dataset gets its own in it (default %(default)s)",
    )
    demo.add_argument("--keep", action="store_true", help="leave the servers running")
    return parser


_FOLDERS = {
    "data": "a prepared dataset, or its URI (s3://, gs://, hdfs://)",
    "store": "its SeqVault",
    "work": "artifacts, metadata and pushed models",
}


def _add_folders(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        kind = str if name == "data" else local_folder
        parser.add_argument(f"--{name}", type=kind, required=True, help=f"folder: {_FOLDERS[name]}")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        type=store_address,
        required=True,
        help="its SeqVault: a folder, or host:port of its servers, which workers elsewhere need",
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        default="default",
        help="YAML file, or one of this package (default); `laser-pipeline settings` lists its "
        "entries",
    )


def _load_config(arguments: argparse.Namespace) -> PipelineConfig:
    from tfx_pipeline.config import load_config
    from tfx_pipeline.datasets.fetch import dataset_folder

    data = dataset_folder(arguments.data)
    return load_config(arguments.config, data, arguments.store, arguments.work)


def _prepare(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.console import Console
    from tfx_pipeline.datasets import GeneratorSettings, prepare

    sizes = {name: getattr(arguments, name) for name in ("users", "items", "requests", "seed")}
    given = {name: number for name, number in sizes.items() if number is not None}
    chosen = [*given, *(["preset"] if arguments.preset else [])]
    if chosen and arguments.source is not None:
        names = ", ".join(f"--{name}" for name in chosen)
        raise PipelineError(
            f"{names} set the size of a generated dataset, and --source takes a real one: give "
            "one or the other"
        )
    settings = GeneratorSettings.of_preset(arguments.preset or "demo", **given)
    console = Console()
    dataset = prepare(arguments.source, arguments.data, console.progress, settings, arguments.store)
    counts = ", ".join(f"{count:,} {name}" for name, count in dataset.counts.items())
    console.say(f"{dataset.path}: {counts}")
    return 0


def _load(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.console import Console
    from tfx_pipeline.datasets.fetch import dataset_folder
    from tfx_pipeline.load_store import load_store

    console = Console()
    # On a new installation the store's kernels are compiled first, which takes a minute.
    with heartbeat("load", console.say_if_silent):
        loaded = load_store(
            dataset_folder(arguments.data),
            arguments.store,
            recent_hours=arguments.recent_hours,
            replace=arguments.replace,
            progress=console.progress,
        )
    console.say(
        f"{arguments.store}: {loaded.bulk_events:,} events in bulk, {loaded.appended_events:,} "
        f"appended, {loaded.users:,} users, {loaded.items:,} items, "
        f"{loaded.bytes_per_event:.2f} bytes per event"
    )
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.check_run import check_run

    config = _load_config(arguments)
    if arguments.spans:
        return _run_spans(config, arguments)
    if arguments.cold_start:
        raise PipelineError("--cold-start is of spans; without one every run begins anew")
    with heartbeat("checking config, dataset and store"):
        check_run(config)
    _check_trainer(config)
    print("loading TFX and TensorFlow: this takes a while")
    with heartbeat("loading TFX and TensorFlow"):
        from tfx_pipeline.runners.local import run_local

    report = run_local(config)
    for line in report.get("anomalies", []):
        print(f"anomaly: {line}")
    overall = report["evaluation"][""]
    print(f"pushed to {report['pushed']}; eval AUC {overall['auc']:.4f}")
    if recall := report.get("recall"):
        from tfx_pipeline.recall.run_fn import describe

        print(f"recall model pushed to {recall['pushed']}; {describe(recall)}")
    return 0


def _run_spans(config: PipelineConfig, arguments: argparse.Namespace) -> int:
    from tfx_pipeline.span import parse_days

    days = parse_days(arguments.spans)
    config.check_inputs()
    _check_trainer(config)
    print("loading TFX and TensorFlow: this takes a while")
    with heartbeat("loading TFX and TensorFlow"):
        from tfx_pipeline.results.spans_report import PAGE, span_lines
        from tfx_pipeline.runners.spans import run_spans

    results = run_spans(config, days, cold_start=arguments.cold_start)
    for line in span_lines(results):
        print(line)
    print(f"{config.work / PAGE}: all spans so far")
    return 0 if any(each.pushed for each in results) else 1


def _check_trainer(config: PipelineConfig) -> None:
    from tfx_pipeline.training.check_cluster import check_cluster
    from tfx_pipeline.training.cluster import Cluster
    from tfx_pipeline.training.transmission import check_codec

    check_codec(config.training.transmission)
    check_cluster(Cluster.from_environment(), config.load_spec())


def _train(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.config import with_training
    from tfx_pipeline.train_alone import train_alone

    arguments.store = ""  # the Examples are joined already
    config = _load_config(arguments)
    if arguments.feature_host:
        config = with_training(config, feature_hosts=arguments.feature_host)
    train_alone(
        config, arguments.output, arguments.cluster, arguments.examples, arguments.transform
    )
    print(f"trained: {arguments.output / 'model'}")
    return 0


def _feature_host(arguments: argparse.Namespace) -> int:
    arguments.work = Path()  # a host writes nothing
    config = _load_config(arguments)
    with heartbeat("loading TensorFlow"):
        from tfx_pipeline.feature_host.serve import serve

    serve(config, arguments.listen, ended=EndSignals())
    print("ended")
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    arguments.store = ""  # the Examples are joined already
    config = _load_config(arguments)
    from tfx_pipeline.profile_training import profile_training  # loads TensorFlow

    output, steps = arguments.output, arguments.steps
    seconds = profile_training(config, output, steps, arguments.examples, arguments.transform)
    print(f"{output}: {1000 * seconds:.1f} ms a step; open it with `tensorboard --logdir {output}`")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.check_run import check_run
    from tfx_pipeline.plan import make_plan

    config = _load_config(arguments)
    with heartbeat("checking config, dataset and store"):
        check_run(config)
    _check_trainer(config)
    for line in make_plan(config).lines():
        print(line)
    return 0


def _settings(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.settings.reference import json_schema, plain_list

    print(json.dumps(json_schema(), indent=2) if arguments.json_schema else plain_list())
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.compare.run_compare import run_compare
    from tfx_pipeline.datasets.fetch import dataset_folder

    data = dataset_folder(arguments.data)
    run_compare(arguments.config, data, arguments.work, arguments.store, arguments.jobs)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.results.past_runs import read_runs
    from tfx_pipeline.results.status import status_lines
    from tfx_pipeline.runners.work_lock import is_locked

    before: list[str] = []
    while True:
        is_running = is_locked(arguments.work)
        database = arguments.work / "metadata.sqlite"
        has_begun = database.is_file() or not (arguments.watch and is_running)
        lines = list(status_lines(read_runs(database) if has_begun else [], is_running))
        for line in lines if lines != before else []:
            print(line)
        if not (arguments.watch and is_running):
            return 0
        before = lines
        time.sleep(_WATCH_SECONDS)


def _compile(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.check_run import check_run

    config = _load_config(arguments)
    check_run(config)
    print("loading TFX and TensorFlow: this takes a while")
    with heartbeat("loading TFX and TensorFlow"):
        from tfx_pipeline.runners.kubeflow import DEFAULT_IMAGE, compile_kubeflow

    image = arguments.image or DEFAULT_IMAGE
    where = arguments.data if scheme_of(arguments.data) else None
    output = compile_kubeflow(config, arguments.output, image, where)
    print(f"{output}: Kubeflow pipeline {config.name}")
    return 0


def _build_ops(_: argparse.Namespace) -> int:
    from tfx_pipeline.training.row_frames import build_ops

    with heartbeat("compiling"):
        path = build_ops()
    print(f"built: {path}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from tfx_pipeline.demo.demo import run_demo

    # Models of different datasets are never compared, so each has metadata of its own.
    name = arguments.data.resolve().name if arguments.data else "generated"
    run_demo(arguments.work / name, source=arguments.data, keep=arguments.keep)
    return 0


def _prepare_libraries() -> None:
    """Set environment variables, before TensorFlow is imported; child processes inherit them.

    It silences start-up messages of libraries, and makes TensorFlow keep the memory of large
    tensors between steps: allocating it afresh takes as long as computing them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    os.environ.setdefault(
        "PYTHONWARNINGS",
        "ignore::FutureWarning:google.api_core._python_version_support,"
        "ignore::FutureWarning:google.cloud.aiplatform.models",
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _hours(text: str) -> float:
    hours = float(text)
    if not (math.isfinite(hours) and hours >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number of hours; give 0 or more")
    return hours


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_and_exit()
