"""Which role does a head play? From three kinds of evidence, by thresholds that are stated.

Where it looks (attention on IOI prompts), what it does with what it sees (copying, for and against), and whom
it serves (path effects, from the logits backwards: each step asks who is read by the heads found in the step
before). A head gets a role when all three say so, two roles make it ambiguous, and none leaves it without:
looking in the right place is not enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import Head, all_heads
from mechlab.circuits.circuits import Circuit, Edge
from mechlab.circuits.ioi.prompts import IOIPrompts
from mechlab.circuits.paths import path_patching
from mechlab.discovery.attention import both_copying_scores
from mechlab.results import Scores
from mechlab.runs.engines import run_of
from mechlab.runs.run import Run

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

    table:   one row a head: attention, copying, path effects (NaN where it was not asked: it does not look
             there), "role"
    paths:   the path effects of each step, by sender; the last sender is all heads that were not asked alone
    circuit: the heads with a role, with their positions and the edges found on the way
    """

    table: "pd.DataFrame"
    circuit: Circuit
    paths: dict[str, Scores]

    @property
    def ambiguous(self) -> list[Head]:
        """Heads that fit two roles."""
        return [head for head, role in self.table["role"].items() if role.startswith("ambiguous")]

    @property
    def unexplained(self) -> list[Head]:
        """Heads that write to the logits directly, above the threshold, and fit no role."""
        direct = self.table["logits"].abs() >= THRESHOLDS["path"]
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


def find_roles(model: "TransformerBridge", prompts: IOIPrompts, reference: IOIPrompts) -> Roles:
    """Give every head its role, by the rules of `RULES` and the limits of `THRESHOLDS`.

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
    effects = {"logits": dict(zip(index, paths["logits"].values.tolist(), strict=True))}
    fits: dict[Head, list[str]] = {}
    _decide(fits, "logits", effects["logits"], looks, copies)
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
        effects[name] = dict(zip(some, paths[name].values.tolist(), strict=False))
        _decide(fits, name, effects[name], looks, copies)
    columns = {**looks, "copies": copies["for"], "copies against": copies["against"]}
    table = pd.DataFrame({name: each.flatten().tolist() for name, each in columns.items()}, index=index)
    for name, each in effects.items():
        table[name] = [each.get(head, float("nan")) for head in index]
    words = {
        head: roles[0] if len(roles) == 1 else "ambiguous: " + ", ".join(roles)
        for head, roles in fits.items()
    }
    table["role"] = [words.get(head, "") for head in index]
    return Roles(table, _circuit(fits, effects), paths)


def _looks(rule: Rule, looks: Mapping, head: Head) -> bool:
    enough = looks[rule.looks][head] >= THRESHOLDS["attention"]
    return bool(enough and not (rule.over and looks[rule.looks][head] <= looks[rule.over][head]))


def _decide(fits: dict, serves: str, effects: Mapping[Head, float], looks: Mapping, copies: Mapping) -> None:
    """Add the roles of one step to what each head fits."""
    for role, rule in RULES.items():
        for head, effect in effects.items():
            size = effect * rule.sign if rule.sign else abs(effect)
            enough = size >= THRESHOLDS["path"] and (
                not rule.copies or copies[rule.copies][head] >= THRESHOLDS["copying"]
            )
            if rule.serves == serves and enough and _looks(rule, looks, head):
                fits.setdefault(head, []).append(role)


def _circuit(fits: Mapping[Head, Sequence[str]], effects: Mapping[str, Mapping[Head, float]]) -> Circuit:
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
            effect = round(found[head], 3)
            if name == "logits":
                edges.append(Edge(head, None, "logits", effect))
                continue
            role, letter = into[name]
            edges += [
                Edge(head, other, letter, effect) for other in roles.get(role, []) if other[0] > head[0]
            ]
    return Circuit({role: roles[role] for role in order}, {role: sorted(at[role]) for role in order}, edges)
