"""How torch's threads wait: a forward pass on a quiet machine and on a busy one, spinning (the default) and not.

With more running threads than cores, a thread that spins while it waits takes the core from the one it waits for.
`mechlab lab` therefore sets OMP_WAIT_POLICY=PASSIVE.
"""

import os
import statistics
import subprocess
import sys

MEASURE = """
import time, torch, mechlab as ml
model = ml.load(quiet=True)
tokens = model.to_tokens(["When John and Mary went to the store, John gave a drink to"] * 16)
times = []
with torch.no_grad():
    for _ in range(6):
        start = time.perf_counter()
        model(tokens)
        times.append(time.perf_counter() - start)
print(sorted(times[1:])[2])
"""


def main() -> bool:
    median = {}
    for busy in (0, os.cpu_count() or 1):
        load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for policy in ("", "PASSIVE"):
                runs = [_seconds(policy) for _ in range(3)]
                median[busy > 0, policy] = statistics.median(runs)
        finally:
            for process in load:
                process.kill()
    for busy in (False, True):
        spinning, passive = median[busy, ""], median[busy, "PASSIVE"]
        print(
            f"forward pass of 16 prompts, {'busy' if busy else 'quiet'} machine: spinning {spinning:.2f} s, passive "
            f"{passive:.2f} s, ratio {spinning / passive:.1f}"
        )
    return median[True, "PASSIVE"] <= median[True, ""] and median[False, "PASSIVE"] <= 1.3 * median[False, ""]


def _seconds(policy: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    return float(
        subprocess.run(
            [sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True
        ).stdout
    )
