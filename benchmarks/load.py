"""Loading the model: `mechlab.load()` beside the plain TransformerLens recipe, and three kernels at once.

Each measurement is a process of its own, the two recipes in turn. Seconds count from after the imports to a
ready model; logits are compared bit by bit. Shared and private memory are read from /proc (Linux).
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5
MEASURE = """
import json, resource, sys, time
import torch
from transformer_lens.model_bridge import TransformerBridge
import mechlab as ml
from benchmarks.memory import memory
from mechlab.loading import checkpoints, models
from transformers import AutoModelForCausalLM, AutoTokenizer  # part of the imports, not of the loading
recipe, hold = sys.argv[1], sys.argv[2]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
imported, start, cpu = peak(), time.perf_counter(), time.process_time()
if recipe == "plain":
    model = TransformerBridge.boot_transformers(str(checkpoints.cache_dir() / "smollm2" / "raw"), device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
else:
    model = ml.load(quiet=True)
out = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "peak": peak(), "imports": imported}
tokens = model.to_tokens("When John and Mary went to the store, John gave a drink to")
with torch.no_grad():
    logits, cache = model.run_with_cache(tokens)
out["answer"] = logits[0, -1].numpy().tobytes().hex()[:4000]
if hold != "-":
    open(hold + "." + str(__import__("os").getpid()), "w").close()
    while not __import__("os").path.exists(hold):
        time.sleep(0.05)
try:
    out |= {key: 1e3 * gb for key, gb in memory().items()}
except OSError:  # no Linux
    out |= {"resident": 0, "shared": 0, "private": 0}
if hold != "-":  # let the others read their numbers while this one is still here
    open(hold + ".done." + str(__import__("os").getpid()), "w").close()
    while len(__import__("glob").glob(hold + ".done.*")) < int(sys.argv[3]):
        time.sleep(0.05)
print(json.dumps(out))
"""


def start(recipe: str, hold: str = "-", count: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-c", MEASURE, recipe, hold, str(count)]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def result(process: subprocess.Popen) -> dict:
    text, _ = process.communicate()
    return json.loads(text.splitlines()[-1])


def together(recipe: str, count: int) -> list[dict]:
    """`count` kernels at once; memory is read while all of them have the model open."""
    with tempfile.TemporaryDirectory() as folder:
        hold = f"{folder}/go"
        processes = [start(recipe, hold, count) for _ in range(count)]
        while len(list(Path(folder).glob("go.*"))) < count:
            time.sleep(0.1)
        Path(hold).touch()
        return [result(process) for process in processes]


def row(what: str, ours: str, plain: str, target: str, met: bool) -> bool:
    print(f"{what:44} {ours:>14} {plain:>14}   {target:22} {'met' if met else 'MISSED'}")
    return met


def main() -> bool:
    """Print the table; True when every target is met."""
    from mechlab.loading import checkpoints

    for kind in ("folded", "raw"):
        checkpoints.prepare(kind)
    runs: dict[str, list[dict]] = {"ours": [], "plain": []}
    for _ in range(ROUNDS):
        for recipe, kept in runs.items():
            kept.append(result(start(recipe)))
    median = lambda recipe, key: statistics.median(run[key] for run in runs[recipe])
    ours, plain = ({k: median(r, k) for k in ("seconds", "cpu", "peak")} for r in runs)
    ratios = [p["seconds"] / o["seconds"] for o, p in zip(runs["ours"], runs["plain"], strict=True)]
    print(f"\nLoading SmolLM2, medians of {ROUNDS} rounds in turn\n")
    print(f"{'':44} {'mechlab':>14} {'plain recipe':>14}   {'target':22}")
    results = [
        row(
            "seconds after imports",
            f"{ours['seconds']:.2f}",
            f"{plain['seconds']:.2f}",
            "under 3",
            ours["seconds"] < 3,
        ),
        row(
            "  plain / mechlab, pair by pair",
            f"{statistics.median(ratios):.1f}",
            "",
            "over 1",
            statistics.median(ratios) > 1,
        ),
        row("CPU seconds after imports", f"{ours['cpu']:.2f}", f"{plain['cpu']:.2f}", "", True),
        row(
            "peak memory before the first run, MB",
            f"{ours['peak']:.0f}",
            f"{plain['peak']:.0f}",
            "at most 700",
            ours["peak"] <= 700,
        ),
        row(
            "same logits, bit by bit",
            str({run["answer"] for run in runs["ours"]} == {run["answer"] for run in runs["plain"]}),
            "",
            "True",
            {run["answer"] for run in runs["ours"]} == {run["answer"] for run in runs["plain"]},
        ),
    ]
    print("\nThree kernels at once, each after one run with a full cache, MB each\n")
    three, three_plain = together("ours", 3), together("plain", 3)
    for key in ("resident", "shared", "private"):
        values = [f"{statistics.mean(run[key] for run in group):.0f}" for group in (three, three_plain)]
        limit = "at most 600" if key == "private" else ""
        met = key != "private" or max(run[key] for run in three) <= 600
        results.append(row(key, *values, limit, met))
    return all(results)
