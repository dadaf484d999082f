"""Times the sequence encoders against each other; see ``README.md`` in this folder.

python -m benchmarks.layers.run --output benchmarks/layers/results/<name>.json
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks.layers.paper_form import (
    HistoryRead,
    KerasTargetAttention,
    PaperForm,
    SegmentNetwork,
)
from laser_keras import (
    HSTUEncoder,
    LaserEncoder,
    SegmentedTargetAttention,
    TransformerEncoder,
)

BACKEND = keras.backend.backend()
WIDTH = 128
SYSTEMS: dict[str, Callable[[], keras.layers.Layer]] = {
    "laser": LaserEncoder.as_printed,  # the same function as `paper_form`
    "paper_form": PaperForm,
    "segmented_target_attention": SegmentedTargetAttention,
    "segment_network": SegmentNetwork,
    "history_read": HistoryRead,
    "keras_target_attention": KerasTargetAttention,
    "hstu": HSTUEncoder,
    "transformer": TransformerEncoder,
}
# Floats of the largest tensor that a system may form; beyond it the case is left out.
LARGEST = 2e8
FEWEST_ROUNDS, MOST_ROUNDS = 5, 15
LONG_STEP_SECONDS = 2.0


def batch_size(length: int, candidates: int, events: int) -> int:
    """Requests per call: about ``events`` events in all, at most 64 requests."""
    return max(1, min(64, events // (length * candidates)))


def largest_tensor(system: str, batch: int, length: int, candidates: int) -> float:
    """Floats in the largest intermediate tensor, by formula."""
    if system == "transformer":
        return batch * candidates * 2 * length**2
    if system == "hstu":
        return batch * 2 * length**2
    if system == "paper_form":
        return batch * candidates * length * WIDTH
    if system == "history_read":
        return batch * length * WIDTH
    return batch * candidates * length / 10 * 4 * WIDTH + batch * length * WIDTH


def make_step(
    layer: keras.layers.Layer, inputs: dict[str, np.ndarray], backward: bool, jit: bool
) -> Callable[[], Any]:
    """A function without arguments that runs one compiled step and waits for its result."""
    layer.build(inputs["target"].shape, inputs["history"].shape)
    arrays = {name: keras.ops.convert_to_tensor(value) for name, value in inputs.items()}
    weights = [variable.value for variable in layer.trainable_variables]
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def loss(values: Any, target: Any, history: Any) -> Any:
        outputs, _ = layer.stateless_call(values, fixed, target, history, mask=arrays["mask"])
        return outputs if not backward else keras.ops.sum(keras.ops.square(outputs))

    arguments = (weights, arrays["target"], arrays["history"])
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=jit)
        def step(values, target, history):
            if not backward:
                return loss(values, target, history)
            with tf.GradientTape() as tape:
                tape.watch([values, target, history])
                result = loss(values, target, history)
            sources = [values, target, history]
            return tape.gradient(result, sources, unconnected_gradients="zero")

        step.get_concrete_function(*arguments)
        return lambda: tf.nest.map_structure(lambda x: x.shape, step(*arguments))
    if BACKEND == "jax":
        import jax

        function = jax.grad(loss, argnums=(0, 1, 2)) if backward else loss
        compiled = jax.jit(function).lower(*arguments).compile()
        return lambda: jax.block_until_ready(compiled(*arguments))
    import torch

    def compute() -> Any:
        if not backward:
            with torch.no_grad():
                return loss(*arguments)
        leaves = [x.detach().requires_grad_() for x in (*weights, *arguments[1:])]
        result = loss(leaves[:-2], leaves[-2], leaves[-1])
        return torch.autograd.grad(result, leaves, allow_unused=True)

    def step() -> Any:
        result = compute()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return step


def make_inputs(batch: int, length: int, candidates: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(length // 2, length + 1, batch)
    lengths[0] = length
    return {
        "target": rng.normal(size=(batch, candidates, WIDTH)).astype("float32"),
        "history": rng.normal(size=(batch, length, WIDTH)).astype("float32"),
        "mask": np.arange(length) < lengths[:, None],
    }


def time_case(
    systems: list[str], length: int, candidates: int, backward: bool, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Interleaved rounds of all systems on one case; medians per request."""
    batch = batch_size(length, candidates, args.events)
    case = {
        "length": length,
        "candidates": candidates,
        "batch": batch,
        "pass": "forward+backward" if backward else "forward",
    }
    inputs = make_inputs(batch, length, candidates)
    steps, rows = {}, []
    for system in systems:
        floats = largest_tensor(system, batch, length, candidates)
        if floats > LARGEST:
            rows.append({**case, "system": system, "left_out": f"a tensor of {floats:.1e} floats"})
            continue
        steps[system] = make_step(SYSTEMS[system](), inputs, backward, args.jit)
        steps[system]()
    start = time.perf_counter()
    long = set()
    for system, step in list(steps.items()):  # the second warm-up
        step_start = time.perf_counter()
        step()
        seconds = time.perf_counter() - step_start
        if seconds > args.longest_step:
            rows.append({**case, "system": system, "left_out": f"a step takes {seconds:.0f} s"})
            del steps[system]
        elif seconds > LONG_STEP_SECONDS:
            long.add(system)
    rounds = int(args.seconds / (time.perf_counter() - start)) if steps else 0
    wall: dict[str, list[float]] = {system: [] for system in steps}
    cpu: dict[str, list[float]] = {system: [] for system in steps}
    shuffle = random.Random(0).sample
    for _ in range(min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS)):
        # In another order each time, and each after a step of its own that does not count: who
        # comes after a large system pays for what that leaves (returned memory, spinning threads).
        # In a long step that is nothing.
        for system, step in shuffle(list(steps.items()), len(steps)):
            if system not in long:
                step()
            start, cpu_start = time.perf_counter(), time.process_time()
            step()
            wall[system].append(time.perf_counter() - start)
            cpu[system].append(time.process_time() - cpu_start)
    for system in steps:
        rows.append(
            {
                **case,
                "system": system,
                "wall_ms_per_request": 1e3 * statistics.median(wall[system]) / batch,
                "cpu_ms_per_request": 1e3 * statistics.median(cpu[system]) / batch,
                "wall_ms_runs": [round(1e3 * value, 3) for value in wall[system]],
                "cpu_ms_runs": [round(1e3 * value, 3) for value in cpu[system]],
            }
        )
    return rows


def peak_memory(system: str, args: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory that one training step adds, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.layers.run", "--peak-memory-of", system]
    command += ["--events", str(args.events), "--threads", str(args.threads)]
    # Freed memory goes back to the system at once instead of hiding the next allocation.
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **returning}
    )
    return {"system": system, "length": 1000, **json.loads(result.stdout.splitlines()[-1])}


def report_peak_memory(system: str, args: argparse.Namespace) -> None:
    """Traced and compiled beforehand; a tiny step of the same kind has loaded the libraries."""
    batch = batch_size(1000, 1, args.events)
    inputs = make_inputs(batch, 1000, 1)
    make_step(SYSTEMS[system](), make_inputs(1, 50, 1), True, False)()
    step = make_step(SYSTEMS[system](), inputs, True, False)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident_kb("VmRSS")
    step()
    peak = (resident_kb("VmHWM") - before) / 1024
    print(json.dumps({"batch": batch, "step_peak_mb": round(peak, 1)}))


def resident_kb(field: str) -> int:
    """From Linux' process status; ``getrusage`` would pass on the parent process's peak."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def limit_threads(threads: int) -> None:
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    elif BACKEND == "torch":
        import torch

        torch.set_num_threads(threads)


def accelerators() -> list[str]:
    """Names of the GPUs and TPUs that the backend computes on; none on a CPU."""
    if BACKEND == "jax":
        import jax

        return [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return [device.name for device in tf.config.list_physical_devices("GPU")]
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def environment(args: argparse.Namespace) -> dict[str, Any]:
    module = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}[BACKEND]
    return {
        "command": " ".join(["python -m benchmarks.layers.run", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "accelerators": accelerators(),
        "keras": keras.__version__,
        "backend": f"{module} {sys.modules[module].__version__}",
        "jit": args.jit,
        "threads": args.threads,
        "width": WIDTH,
        "seed": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[100, 500, 1000, 2000, 4000, 10000]
    )
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 10, 100, 500])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of rounds per case, about")
    parser.add_argument(
        "--longest-step", type=float, default=60.0, help="seconds; a slower system is left out"
    )
    parser.add_argument("--events", type=int, default=64000, help="events per call, about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jit", action="store_true", help="XLA on TensorFlow (JAX always)")
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    limit_threads(args.threads)
    if args.peak_memory_of:
        return report_peak_memory(args.peak_memory_of, args)
    report: dict[str, Any] = {"environment": environment(args), "times": [], "memory": []}
    for length in args.lengths:
        for candidates in args.candidates:
            for backward in (False, True):
                rows = time_case(args.systems, length, candidates, backward, args)
                report["times"] += rows
                write(report, args.output)  # a run cut short leaves what it has
                for row in rows:
                    shown = row.get("left_out") or (
                        f"{row['wall_ms_per_request']:10.3f} ms wall "
                        f"{row['cpu_ms_per_request']:10.3f} ms cpu per request"
                    )
                    print(
                        f"L={length:<6} N={candidates:<4} {row['pass']:17} "
                        f"{row['system']:23} {shown}",
                        flush=True,
                    )
    if BACKEND in ("tensorflow", "jax") and not args.jit:
        for system in args.systems:
            report["memory"].append(peak_memory(system, args))
            print(report["memory"][-1], flush=True)
    write(report, args.output)


def write(report: dict[str, Any], output: Path | None) -> None:
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
