"""Which role does a head play? From three kinds of evidence, by thresholds that are stated.

Where it looks (attention on IOI prompts), what it does with what it sees (copying, for and against; asked of
four roles, the others carry no word), and whom it serves (path effects, from the logits backwards: each step
asks who is read by the heads found in the step before). A head gets a role when all that is asked says so;
two roles make it ambiguous, and none leaves it without: looking in the right place is not enough. Hundreds
of paths are asked, so one counts only if its interval, corrected for all of them, stays away from zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import Head, all_heads
from mechlab.circuits.circuits import Circuit, Edge
from mechlab.circuits.ioi.prompts import IOIPrompts
from mechlab.circuits.paths import path_patching
from mechlab.discovery.attention import both_copying_scores
from mechlab.results import Scores
from mechlab.runs.engines import run_of
from mechlab.runs.run import Run
from mechlab.statistics import FEWEST_UNITS

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

PLACES = {  # where a head of the circuit looks, from where
    "end→IO": ("end", "IO"),
    "end→S1": ("end", "S1"),
    "end→S2": ("end", "S2"),
    "S2→S1": ("S2", "S1"),
    "S2→S1+1": ("S2", "S1+1"),
    "S1+1→S1": ("S1+1", "S1"),
}


Effect = tuple[float, float, float]  # a mean, and the low and the high end of its corrected interval


@dataclass(frozen=True)
class Rule:
    """What a head must show to have a role.

    looks:  a place of `PLACES`, or "end→S" (S1 and S2 together), that gets at least `THRESHOLDS["attention"]`
            of its attention
    copies: "for", "against": at least `THRESHOLDS["copying"]` of the names; None: not asked
    serves: who reads it, and the sign that the path must have (0: either), at least `THRESHOLDS["path"]`
    at:     the position where it acts
    over:   a place that must get less
    """

    looks: str
    copies: str | None
    serves: str
    sign: int
    at: str
    over: str | None = None


THRESHOLDS = {"attention": 0.15, "copying": 0.25, "path": 0.01}
LEVEL = 1 - 0.05 / 4  # of each of four sweeps, so that a false path among all of them has a chance of 5 %
UNSURE = "path not told from zero"
# In the order in which they are found, from the logits backwards. The path effects are shares of the way to
# the ABC run: positive for a head that helps.
RULES = {
    "name mover": Rule("end→IO", "for", "logits", +1, "end"),
    "negative name mover": Rule("end→IO", "against", "logits", -1, "end"),
    "subject suppressor": Rule("end→S2", "against", "logits", +1, "end"),
    "subject mover": Rule("end→S", "for", "logits", -1, "end", over="end→IO"),
    "S-inhibition": Rule("end→S2", None, "queries of name movers", +1, "end"),
    "induction": Rule("S2→S1+1", None, "values of S-inhibition", +1, "S2"),
    "duplicate token": Rule("S2→S1", None, "values of S-inhibition", +1, "S2"),
    "previous token": Rule("S1+1→S1", None, "keys of induction", +1, "S1+1"),
}
# what the last steps ask: (name of the path, whose input, which, where)
STEPS = (
    ("queries of name movers", "name mover", "q", "end"),
    ("values of S-inhibition", "S-inhibition", "v", "S2"),
    ("keys of induction", "induction", "k", "S1+1"),
)


@dataclass(frozen=True)
class Roles:
    """The evidence for every head, and the circuit that follows from it.

    table:     one row a head: attention, copying, path effects (NaN where it was not asked: it does not look
               there), "role": "name mover", or "name mover? path not told from zero" where all but the
               interval says so
    circuit:   the heads with a role, with their positions and the edges found on the way
    paths:     the path effects of each step, by sender; the last one is all heads that were not asked alone
    intervals: of each step [2, sender], corrected for all senders that were asked (`joint_intervals`)
    """

    table: "pd.DataFrame"
    circuit: Circuit
    paths: dict[str, Scores]
    intervals: dict[str, Float[Tensor, "2 sender"]]

    @property
    def ambiguous(self) -> list[Head]:
        """Heads that fit two roles."""
        return [head for head, role in self.table["role"].items() if role.startswith("ambiguous")]

    @property
    def unexplained(self) -> list[Head]:
        """Heads that surely write to the logits directly, above the threshold, and fit no role."""
        low, high = self.intervals["logits"]
        direct = (self.table["logits"].abs() >= THRESHOLDS["path"]) & (low * high > 0).numpy()
        return list(self.table.index[direct & (self.table["role"] == "")])


def attention_to(prompts: IOIPrompts, run: Run) -> dict[str, Float[Tensor, "layer head"]]:
    """How much of its attention each head gives from one place of the prompt to another, on average.

    The places are in `PLACES`; "end→S" is both S.
    """
    rows, found = torch.arange(len(prompts)), {name: [] for name in PLACES}
    for layer in range(run.model.cfg.n_layers):
        pattern = run.at("pattern", layer)
        for name, (query, key) in PLACES.items():
            at = prompts.positions[query], prompts.positions[key]
            seen = at[0] >= at[1]  # a query does not look ahead: "S1+1" may be the first name's
            found[name].append(pattern[rows, at[0], :, at[1]][seen].float().mean(0))
    looks = {name: torch.stack(each).cpu() for name, each in found.items()}
    return looks | {"end→S": looks["end→S1"] + looks["end→S2"]}


def joint_intervals(
    scores: Scores,
    units: Int[Tensor, "prompt"],
    *,
    level: float = LEVEL,
    draws: int = 5000,
    seed: int = 0,
) -> Float[Tensor, "2 ..."]:
    """Intervals of the means over prompts that hold for all places at once, with the chance of `level`.

    Whole clusters (`units`) get a random sign, as if there were nothing to find; how far the furthest place
    then lies from zero, in standard errors, is the half width for all. The permutation of the maximum:
    Westfall and Young 1993. NaN where there are fewer than `FEWEST_UNITS` clusters.
    """
    rows = scores.per_prompt
    if rows is None or len(units.unique()) < FEWEST_UNITS:
        return scores.values.new_full((2, *scores.values.shape), torch.nan)
    numbers = units.unique(return_inverse=True)[1].cpu()
    count = int(numbers.max()) + 1
    means = torch.stack([rows[numbers == n].flatten(1).mean(0) for n in range(count)]).double()
    signs = torch.randint(2, (draws, count), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    null, square = signs @ means / count, means.pow(2).mean(0)
    error = lambda mean: ((square - mean.pow(2)).clamp_min(0) / (count - 1)).sqrt()
    furthest = (null.abs() / error(null)).nan_to_num(0, posinf=0).amax(1).quantile(level)
    mean, half = means.mean(0), furthest * error(means.mean(0))
    return torch.stack([mean - half, mean + half]).float().reshape(2, *scores.values.shape)


def find_roles(model: "TransformerBridge", prompts: IOIPrompts, reference: IOIPrompts) -> Roles:
    """Give every head its role, by the rules of `RULES`, the limits of `THRESHOLDS` and joint intervals.

    Path patching from `prompts` to `reference` (ABC prompts): into the logits, from every head; into the
    queries of the name movers, into the values of the S-inhibition heads at S2, and into the keys of the
    induction heads at S1+1, from every head that looks where the role does, and from all others together
    ("the rest"). A step whose receivers were not found is left out, and so are the roles that depend on it.
    """
    import pandas as pd

    base = run_of(model, prompts.tokens)
    source = run_of(model, reference.tokens, like=base)
    runs = model, base, source, prompts.metric
    looks = attention_to(prompts, base)
    both = both_copying_scores(model, prompts.names)
    copies = {"for": both[0].values, "against": both[1].values}
    index = all_heads(model)
    paths = {"logits": path_patching(*runs, senders=[[head] for head in index])}
    intervals = {"logits": joint_intervals(paths["logits"], prompts.pairs)}
    effects = {"logits": _by_head(index, paths["logits"], intervals["logits"])}
    fits: dict[Head, list[str]] = {}
    unsure: dict[Head, list[str]] = {}
    _decide(fits, unsure, "logits", effects["logits"], looks, copies)
    for name, role, into, at in STEPS:
        receivers = [head for head, roles in fits.items() if role in roles]
        below = index[: model.cfg.n_heads * max((layer for layer, _ in receivers), default=0)]
        some = [
            head
            for head in below
            if any(_looks(rule, looks, head) for rule in RULES.values() if rule.serves == name)
        ]
        if not some:
            continue
        rest = [head for head in below if head not in some]
        senders = [[head] for head in some] + ([rest] if rest else [])
        paths[name] = path_patching(*runs, receivers, into, at=prompts.positions[at], senders=senders)
        intervals[name] = joint_intervals(paths[name], prompts.pairs)
        effects[name] = _by_head(some, paths[name], intervals[name])
        _decide(fits, unsure, name, effects[name], looks, copies)
    columns = {**looks, "copies": copies["for"], "copies against": copies["against"]}
    table = pd.DataFrame({name: each.flatten().tolist() for name, each in columns.items()}, index=index)
    for name, each in effects.items():
        table[name] = [each[head][0] if head in each else float("nan") for head in index]
    words = {head: f"{', '.join(roles)}? {UNSURE}" for head, roles in unsure.items()}
    words |= {
        head: roles[0] if len(roles) == 1 else "ambiguous: " + ", ".join(roles)
        for head, roles in fits.items()
    }
    table["role"] = [words.get(head, "") for head in index]
    return Roles(table, _circuit(fits, effects), paths, intervals)


def _by_head(
    heads: Sequence[Head], scores: Scores, interval: Float[Tensor, "2 sender"]
) -> dict[Head, Effect]:
    """The effect of each head that was asked alone, with the low and the high end of its interval."""
    return dict(zip(heads, zip(scores.values.tolist(), *interval.tolist(), strict=True), strict=False))


def _looks(rule: Rule, looks: Mapping, head: Head) -> bool:
    enough = looks[rule.looks][head] >= THRESHOLDS["attention"]
    return bool(enough and not (rule.over and looks[rule.looks][head] <= looks[rule.over][head]))


def _decide(
    fits: dict, unsure: dict, serves: str, effects: Mapping[Head, Effect], looks: Mapping, copies: Mapping
) -> None:
    """Add the roles of one step to what each head fits; to `unsure` where its path may be nothing."""
    for role, rule in RULES.items():
        for head, (effect, low, high) in effects.items():
            size = effect * rule.sign if rule.sign else abs(effect)
            enough = size >= THRESHOLDS["path"] and (
                not rule.copies or copies[rule.copies][head] >= THRESHOLDS["copying"]
            )
            if rule.serves == serves and enough and _looks(rule, looks, head):
                (fits if low * high > 0 else unsure).setdefault(head, []).append(role)


def _circuit(fits: Mapping[Head, Sequence[str]], effects: Mapping[str, Mapping[Head, Effect]]) -> Circuit:
    roles: dict[str, list[Head]] = {}
    at: dict[str, set[str]] = {}
    for head, mine in sorted(fits.items()):
        name = mine[0] if len(mine) == 1 else "ambiguous"
        roles.setdefault(name, []).append(head)
        at.setdefault(name, set()).update(RULES[role].at for role in mine)
    order = [role for role in (*RULES, "ambiguous") if role in roles]
    edges = []
    into = {name: (role, letter) for name, role, letter, _ in STEPS}
    for name, found in effects.items():
        for head, mine in fits.items():
            if not any(RULES[role].serves == name for role in mine):
                continue
            effect = round(found[head][0], 3)
            if name == "logits":
                edges.append(Edge(head, None, "logits", effect))
                continue
            role, letter = into[name]
            edges += [
                Edge(head, other, letter, effect) for other in roles.get(role, []) if other[0] > head[0]
            ]
    return Circuit({role: roles[role] for role in order}, {role: sorted(at[role]) for role in order}, edges)
