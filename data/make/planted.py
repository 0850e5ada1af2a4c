"""Write data/reference/planted.csv: every method on every planted circuit. docs/methods_on_trial.md is made from it.

    python data/make/planted.py            about 16 minutes of one core; a second call takes up where it stopped

A row is one method on one model. nodes: heads and MLPs; edges: what one writes and another reads. A score's size is what
counts (`ml.score_against`), what sleeps and the embedding left out. Empty where a method says 0 of all. "model": the metric
of the whole model (as auroc) and its accuracy (as average precision), so that one sees whether a trap changes behaviour.

    flip, third     corrupted prompts ask for the rival, or for neither of the two; knock-outs take their usual from "third"
    noise, denoise  the corrupted run patched into the clean one, or the clean into the corrupted
    half rule       where MLPs are gated; elsewhere it is the gradient
    by prompt       the mean over prompts of the size of the effect, not the size of the mean
"""

import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path

import torch

import mechlab as ml
from mechlab.circuits.planted.tasks import TASKS
from mechlab.circuits.planted.traps import TRAPS

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "data" / "reference" / "planted.csv"
SEEDS, PROMPTS = range(3), 20
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
JUDGED = ("auroc", "average precision", "weakest true", "strongest false")
COLUMNS = ("level", "method", "task", "trap", "seed", *JUDGED, "cpu seconds")


@dataclass(frozen=True)
class Told:
    """Prompts as `ml.CircuitRuns` wants them: one template."""

    tokens: torch.Tensor
    metric: Callable

    @property
    def templates(self) -> list[str]:
        return ["planted"] * len(self.tokens)

    @property
    def pairs(self) -> torch.Tensor:
        return torch.arange(len(self.tokens))

    @property
    def positions(self) -> dict[str, torch.Tensor]:
        return {}


class Case:
    """A planted model with its prompts, each read once."""

    def __init__(self, circuit: ml.Planted, seed: int):
        self.circuit, self.model = circuit, circuit.model
        self.asked = {how: circuit.prompts(PROMPTS, corruption=how, seed=seed) for how in ("flip", "third")}
        self.metric = self.asked["flip"].metric
        self.clean = ml.run_of(self.model, self.asked["flip"].clean)
        self.other = {how: ml.run_of(self.model, asked.corrupted) for how, asked in self.asked.items()}

    def runs(self, how: str, *, at_clean: bool):
        """Base and source: a gradient at the clean run, or a noising, takes the clean one as its base."""
        return (self.clean, self.other[how]) if at_clean else (self.other[how], self.clean)

    @cached_property
    def knockouts(self) -> ml.CircuitRuns:
        told = (Told(tokens, self.metric) for tokens in (self.clean.tokens, self.other["third"].tokens))
        return ml.CircuitRuns(self.model, *told)


def patching(case: Case, how: str, noise: bool) -> ml.Scores:
    runs = case.runs(how, at_clean=noise)
    heads = ml.activation_patching(case.model, *runs, case.metric, "z")
    return ml.by_node(heads, ml.activation_patching(case.model, *runs, case.metric, "mlp_out", by=()))


def ablation(case: Case, how: str) -> ml.Scores:
    layers, heads = range(case.model.cfg.n_layers), range(case.model.cfg.n_heads)
    asked = {"how": how, "source": case.other["third"].tokens}
    take = partial(ml.ablation_effects, case.model, case.clean.tokens, case.metric, **asked)
    return ml.by_node(take([(a, b) for a in layers for b in heads]), take([*layers], unit="mlp"))


def by_prompt(scores: ml.Scores) -> ml.Scores:
    return ml.Scores(scores.per_prompt.abs().mean(0), scores.dims, scores.name, scores.labels)


def direct(case: Case) -> ml.Scores:
    ids = case.metric.ids(PROMPTS, case.clean.tokens.device).T
    ask = partial(ml.direct_logit_attribution, case.model, case.clean.tokens, *ids)
    parts = ask(unit="component")
    mlps = [n for n, name in enumerate(parts.labels["component"]) if name.startswith("MLP")]
    return ml.by_node(ask(unit="head"), ml.Scores(parts.values[mlps], ("layer",), parts.name))


def attribution(case: Case, how: str, at_clean: bool, **given) -> ml.Scores:
    runs = case.runs(how, at_clean=at_clean)
    return ml.attribution_patching(case.model, *runs, case.metric, by=("node",), **given)


def queries_and_keys(case: Case, how: str, exact: bool) -> ml.Scores:
    """The larger of the guesses for a head's queries and for its keys."""
    runs = case.runs(how, at_clean=True)
    ask = partial(ml.attribution_patching, case.model, *runs, case.metric, exact_softmax=exact)
    q, k = ask(site="q"), ask(site="k")
    return ml.by_node(ml.Scores(torch.maximum(q.values.abs(), k.values.abs()), q.dims, q.name))


def pruning(case: Case, error: str) -> ml.Scores:
    return ml.prune_ranking(case.knockouts, THRESHOLDS, error=error, mlps=True)


def pairs(case: Case, how: str) -> ml.Scores:
    """Each node with each other one, held at the usual together.

    interaction: the most that two do beyond the sum of what each does; what stays: the least that a node and
    another one do together
    """
    runs, names = case.knockouts, ablation(case, "mean").labels["node"]
    alone = [(n,) for n in range(len(names))]
    sets = [*alone, *combinations(range(len(names)), 2)]
    layers, heads = runs.z.shape[0], runs.z.shape[3]
    kept = torch.ones(len(sets), len(names), dtype=torch.bool)
    for row, gone in enumerate(sets):
        kept[row, list(gone)] = False
    z = kept[:, : layers * heads].unflatten(1, (layers, heads))[:, :, None, None]
    z = z.expand(-1, -1, *runs.z.shape[1:3], -1)
    effect = (runs.measure_kept(z, kept[:, layers * heads :]) - runs.intact).mean(1)
    one, both = effect[: len(names)], torch.zeros(len(names), len(names))
    both[tuple(zip(*sets[len(names) :], strict=True))] = effect[len(names) :]
    both = both + both.T
    if how == "interaction":
        found = (both - one - one[:, None]).abs().fill_diagonal_(0).amax(1)
    else:
        found = both.abs().fill_diagonal_(torch.inf).amin(1)
    return ml.Scores(found, ("node",), how, {"node": names})


def edges(case: Case, how: str, at_clean: bool, **given) -> ml.Scores:
    return ml.edge_attribution(case.model, *case.runs(how, at_clean=at_clean), case.metric, **given)


def paths(case: Case, how: str, noise: bool) -> ml.Scores:
    return ml.path_patching_all(case.model, *case.runs(how, at_clean=noise), case.metric)


def _methods() -> dict[str, dict[str, Callable[[Case], ml.Scores]]]:
    """Level -> name of a method -> the method."""
    both, nodes, between = ("flip", "third"), {"direct logit attribution": direct}, {}
    for way, noise in (("denoise", False), ("noise", True)):
        for how in both:
            nodes[f"patching, {way}, {how}"] = partial(patching, how=how, noise=noise)
    nodes |= {f"ablation, {how}": partial(ablation, how=how) for how in ("zero", "mean", "resample")}
    nodes["patching, noise, third, by prompt"] = lambda case: by_prompt(patching(case, "third", True))
    nodes["ablation, mean, by prompt"] = lambda case: by_prompt(ablation(case, "mean"))
    for place, clean in (("corrupted", False), ("clean", True)):
        for how in both:
            nodes[f"attribution at {place}, {how}"] = partial(attribution, how=how, at_clean=clean)
            between[f"edge attribution at {place}, {how}"] = partial(edges, how=how, at_clean=clean, steps=1)
    for how in both:
        half = {"how": how, "at_clean": True, "rule": "half"}
        nodes[f"attribution at clean, half rule, {how}"] = partial(attribution, **half)
        between[f"edge attribution at clean, half rule, {how}"] = partial(edges, steps=1, **half)
    for how in both:
        nodes[f"attribution, 8 steps, {how}"] = partial(attribution, how=how, at_clean=True, steps=8)
        between[f"edge attribution, 8 steps, {how}"] = partial(edges, how=how, at_clean=True, steps=8)
    for how in both:
        nodes[f"attribution, dropped layers, {how}"] = partial(attribution, how=how, at_clean=True, drop=True)
        for exact in (False, True):
            name = f"attribution of q and k, {'exact softmax, ' * exact}{how}"
            nodes[name] = partial(queries_and_keys, how=how, exact=exact)
    nodes |= {f"pruning, error by {error}": partial(pruning, error=error) for error in ("mean", "prompt")}
    nodes |= {f"pairs, {how}": partial(pairs, how=how) for how in ("interaction", "what stays")}
    for way, noise in (("noise", True), ("denoise", False)):
        for how in both:
            between[f"path patching, {way}, {how}"] = partial(paths, how=how, noise=noise)
    return {"nodes": nodes, "edges": between}


METHODS = _methods()


def judged(case: Case, level: str, method: Callable[[Case], ml.Scores]) -> dict[str, float | str]:
    """What a method is worth on a model, and its CPU seconds. Empty where it says 0 of every place."""
    started = time.process_time()
    scores = method(case)
    spent, circuit = time.process_time() - started, case.circuit
    if level == "nodes":
        truth, without = circuit.true_nodes(scores), circuit.open_nodes(scores)
    else:
        truth, without = circuit.true_edges(scores), circuit.open_edges(scores)
    silent = not scores.values[~without].abs().max() > 1e-5
    found = dict.fromkeys(JUDGED, "") if silent else ml.score_against(scores, truth, excluded=without)
    return found | {"cpu seconds": round(spent, 2)}


def cell(task: str, trap: str, seed: int) -> list[dict]:
    """All rows of one model."""
    case, named = Case(ml.planted(task, trap, seed=seed), seed), {"task": task, "trap": trap, "seed": seed}
    told = case.clean.value(case.metric)
    row = {"auroc": float(told.mean()), "average precision": float((told > 0).float().mean())}
    rows = [{"level": "model", "method": "logit difference and accuracy"} | named | row]
    for level, methods in METHODS.items():
        for name, method in methods.items():
            if "half rule" in name and not case.circuit.plan.gated:
                continue  # nothing to halve: the numbers of the gradient
            rows.append({"level": level, "method": name} | named | judged(case, level, method))
    return [
        {
            name: round(row[name], 3) if isinstance(row.get(name), float) else row.get(name, "")
            for name in COLUMNS
        }
        for row in rows
    ]


def possible(task: str, trap: str) -> bool:
    """Whether the trap can be set in this task's plan."""
    try:
        TRAPS[trap](TASKS[task].plan())
    except ValueError:
        return False
    return True


def cells() -> list[tuple[str, str, int]]:
    return [(task, trap, seed) for seed in SEEDS for task in TASKS for trap in TRAPS if possible(task, trap)]


def read() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with TABLE.open(encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def write(rows: Sequence[Mapping]) -> None:
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    rows = read()
    done = {(row["task"], row["trap"], int(row["seed"])) for row in rows}
    for place in cells():
        if place not in done:
            rows += cell(*place)
            write(rows)  # after each model: a second call takes up where an interrupted one stopped
            print(f"{time.process_time():.0f} s", *place, file=sys.stderr, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
