"""Every method of notebook 11 on 34 prompts, with three baselines, judged by deletion beside random orders.

`python -m benchmarks.input_attribution [KIND ...]` prints the table and writes data/reference/input_attribution.csv
(half an hour on two cores; with kinds of prompts named, only their rows are made again). One row for each kind of
prompt, method, baseline the method replaces tokens by, and baseline the deletion replaces them by:

    better, low, high:  mean of the deletion curve below that of random orders, in logits, with a 95 % bootstrap
                        interval over the 8 units (sentences; a sentence and its mirror image are one); 0 = no
                        better than chance
    chance:             share of 40 random orders (each averaged over the prompts) at least as good
    tied:               yes when the interval of the difference to the best row of its table includes 0
    seconds:            a prompt, median
"""

import statistics
import sys
import time
from pathlib import Path

import pandas as pd
import torch

import mechlab as ml
from mechlab.attribution.deletion import deletion_curves
from mechlab.attribution.inputs import INPUT_METHODS
from mechlab.attribution.masking import baseline_tokens

DATA = Path(__file__).parents[1] / "data"
BASELINES = (",", "<|endoftext|>", "mean")
LONGEST = 11  # tokens of a prompt whose Shapley values are computed: all but the IOI prompts
NO_BASELINE = ("gradient norm", "gradient × input", "attention rollout")  # they do not look at it


def measure(model, rows: pd.DataFrame) -> dict:
    """gain[method, baseline, deletion] -> [prompt]; the same of random orders; seconds[method] -> [prompt]."""
    gains, chances, seconds = {}, {}, {}
    for row in rows.itertuples():
        base = model.to_tokens(row.prompt)
        metric = ml.logit_difference(
            ml.single_token(model, " " + row.answer), ml.single_token(model, " " + row.rival)
        )
        scores = {}
        for by in BASELINES:
            source = baseline_tokens(model, base, by)
            for name, method in INPUT_METHODS.items():
                if name in NO_BASELINE and by != BASELINES[0]:
                    continue
                if name == "Shapley values" and base.shape[1] > LONGEST:
                    continue
                start = time.perf_counter()
                scores[name, "" if name in NO_BASELINE else by] = method(model, base, source, metric)
                seconds.setdefault(name, []).append(time.perf_counter() - start)
        for by in BASELINES:
            curves = deletion_curves(model, base, baseline_tokens(model, base, by), metric, scores, orders=40)
            chance = curves.random.mean(-1)[:, 0]  # order
            for key in scores:
                gains.setdefault((*key, by), []).append(curves.gain(key)[0])
            chances.setdefault(by, []).append(chance.mean() - chance)
    stack = lambda found: {key: torch.stack(values) for key, values in found.items()}
    return {"gain": stack(gains), "random": stack(chances), "seconds": seconds}


def mean_interval(values: torch.Tensor, units: torch.Tensor) -> tuple[float, float]:
    return tuple(ml.Scores.over_prompts(values, (), "gain", units=units).interval().tolist())


def table(kind: str, found: dict, units: torch.Tensor) -> list[dict]:
    rows = []
    for (method, baseline, deletion), gain in found["gain"].items():
        rivals = {key: value for key, value in found["gain"].items() if key[2] == deletion}
        best = max(rivals.values(), key=lambda value: value.mean().item())
        low, high = mean_interval(gain, units)
        behind, _ = mean_interval(best - gain, units)
        rows.append(
            {
                "kind": kind,
                "method": method,
                "baseline": baseline,
                "deletion": deletion,
                "better": round(gain.mean().item(), 2),
                "low": round(low, 2),
                "high": round(high, 2),
                "chance": round((found["random"][deletion].mean(0) >= gain.mean()).float().mean().item(), 3),
                "tied": "yes" if behind <= 0 else "no",
                "seconds": round(statistics.median(found["seconds"][method]), 2),
            }
        )
    return rows


def main(kinds: list[str]) -> None:
    model = ml.load()
    prompts, target = (
        pd.read_csv(DATA / "prompts" / "attribution.csv"),
        DATA / "reference" / "input_attribution.csv",
    )
    every = prompts.kind.unique().tolist()
    for kind in kinds or every:
        group = prompts[prompts.kind == kind]
        rows = table(kind, measure(model, group), torch.tensor(group.unit.tolist()))
        kept = pd.read_csv(target, keep_default_na=False).query(
            "kind != @kind"
        )  # read late: others write too
        page = pd.concat([kept, pd.DataFrame(rows)])
        page = page.sort_values("kind", key=lambda column: column.map(every.index), kind="stable")
        page.to_csv(target, index=False)
        print(pd.DataFrame(rows).sort_values("better").to_string(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
