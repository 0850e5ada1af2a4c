"""The model behind the picture: a contrast as a flow, and what groups of neurons do when they are turned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least
from mechlab.attribution.contrast import Contrast
from mechlab.attribution.following import Place
from mechlab.attribution.neurons import value_tokens
from mechlab.intervention.groups import group_values
from mechlab.pictures.tracing.flow import Flow, Inside, Part, Step, Turn
from mechlab.runs.engines import run_of
from mechlab.runs.run import Put, Run
from mechlab.tokens import Prompts, batch_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

READABLE = 0.75  # of the layers: from there on, what a neuron writes can be read as words
LOOKS = 0.15  # attention that is drawn
WORDS = 4  # that are told of a neuron
AT_ONCE = 64  # texts that are read together


@dataclass(frozen=True, eq=False)
class Knob:
    """A group of neurons that is turned by steps from one mean to another.

    neurons:    (layer, position, neuron) of each
    around, to: [neuron], the means: at strength 1 the difference is added to what the neurons have
    """

    name: str
    neurons: Sequence[Place]
    around: Float[Tensor, "neuron"]
    to: Float[Tensor, "neuron"]

    def __post_init__(self):
        at_least("the number of neurons", len(self.neurons), 1)
        for name in ("around", "to"):
            if tuple(getattr(self, name).shape) != (len(self.neurons),):
                found = tuple(getattr(self, name).shape)
                raise ValueError(
                    f"{self.name!r}: {name} is {found}, and there are {len(self.neurons)} neurons."
                )

    @classmethod
    def between(
        cls,
        model: "TransformerBridge",
        name: str,
        neurons: Sequence[Place],
        around: Prompts | Run,
        to: Prompts | Run,
    ) -> "Knob":
        """A group whose step leads from its mean over some prompts to that over others."""
        here, there = (group_values(model, each, neurons).mean(0) for each in (around, to))
        return cls(name, neurons, here, there)


class Turning:
    """One prompt, groups to turn in it, and late groups to watch and to hold.

    Turned by `Put`, not by hooks, which another thread's run of the model would see.
    """

    @torch.no_grad()
    def __init__(
        self, model: "TransformerBridge", prompt: Prompts, knobs: Sequence[Knob], late: Sequence[Knob] = ()
    ):
        if not knobs:
            raise ValueError("There is no group to turn.")
        self.model, self.batch = model, batch_of(model, prompt)
        if len(self.batch) != 1:
            raise ValueError(f"Groups are turned in one prompt, and these are {len(self.batch)}.")
        self.knobs, self.late = tuple(knobs), tuple(late)
        self._runs: dict[int, Run] = {}
        self.own = [group_values(model, self._run(1), group.neurons)[0] for group in self.late]
        for group in self.knobs:
            group_values(model, self._run(1), group.neurons)  # refuses neurons that are not there

    @torch.no_grad()
    def steps(self, turns: Sequence[Turn], k: int = 5) -> list[Step]:
        """What the model says next at each turn, all at once: the k likeliest tokens, and the late groups."""
        run = self._run(len(turns))
        changed = run.changed(self._edits(run, turns))
        best = changed.logits([], 1)[:, -1].float().softmax(-1).topk(k)
        gone = [self._gone(changed, group, own) for group, own in zip(self.late, self.own, strict=True)]
        token = lambda n: str(self.model.to_string([n]))
        return [
            Step(
                tuple((token(n), p) for n, p in zip(ids, ps, strict=True)),
                tuple(each[row] for each in gone),
            )
            for row, (ps, ids) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        ]

    def _run(self, copies: int) -> Run:
        """The prompt, so many times."""
        if copies not in self._runs:
            self._runs[copies] = run_of(self.model, self.batch.tokens.expand(copies, -1))
        return self._runs[copies]

    def _edits(self, run: Run, turns: Sequence[Turn]) -> list[Put]:
        """A neuron that is in several groups goes the sum of their steps; what is held does not move."""
        groups = [*self.knobs, *self.late]
        values = {place[0]: run.at("post", place[0]).clone() for group in groups for place in group.neurons}
        where = {layer: torch.zeros_like(each, dtype=torch.bool) for layer, each in values.items()}
        for n, group in enumerate(self.knobs):
            strength = torch.tensor([some[n] for some, _ in turns]).to(run.at("post", 0))
            for (layer, pos, neuron), way in zip(group.neurons, group.to - group.around, strict=True):
                values[layer][:, pos, neuron] += strength * way.to(strength)
                where[layer][:, pos, neuron] |= strength != 0
        for n, (group, own) in enumerate(zip(self.late, self.own, strict=True)):
            held = torch.tensor([which == n for _, which in turns], device=run.tokens.device)
            for (layer, pos, neuron), value in zip(group.neurons, own, strict=True):
                values[layer][held, pos, neuron] = value.to(values[layer])
                where[layer][held, pos, neuron] = True
        return [
            Put("post", layer, values[layer][None], each[None])
            for layer, each in sorted(where.items())
            if each.any()
        ]

    def _gone(self, changed: Run, group: Knob, own: Float[Tensor, "neuron"]) -> list[float]:
        """The mean share of its way from its own values to the goal that each neuron has gone.

        Weighed by the length of the way: a share of no way at all is noise.
        """
        way = group.to.to(own) - own
        moved = group_values(self.model, changed, group.neurons) - own
        return ((moved * way.sign()).sum(1) / way.abs().sum().clamp_min(1e-6)).tolist()


@torch.no_grad()
def flow_of(
    contrast: Contrast, *, names: tuple[str, str] = ("base", "source"), title: str = "metric", most: int = 20
) -> Flow:
    """The heads and whole MLPs through which most of the change goes, the mean over the pairs of prompts."""
    at_least("most", most, 1)
    change, found = float(contrast.change.mean()), []
    for unit in ("mlp", "head"):
        shares = contrast.totals(unit).values / change
        for place in shares.abs().flatten().topk(min(most, shares.numel())).indices.tolist():
            layer, pos, *head = (int(n) for n in torch.unravel_index(torch.tensor(place), shares.shape))
            found.append(
                Part(layer, pos, round(float(shares.flatten()[place]), 4), head[0] if head else None)
            )
    kept = sorted(found, key=lambda part: -abs(part.share))[:most]
    parts = [part if part.head is None else _looking(contrast, part) for part in kept if part.share]
    sides = zip(*(_labels(contrast.model, run) for run in (contrast.base, contrast.source)), strict=True)
    return Flow(title, change, names, tuple(sides), tuple(parts))


def _looking(contrast: Contrast, part: Part) -> Part:
    """A head with the other positions where it looks."""
    pair = (contrast.base, contrast.source)
    rows = [run.at("pattern", part.layer)[:, part.pos, part.head].mean(0) for run in pair]
    shares = enumerate(((rows[0] + rows[1]) / 2).tolist())
    looks = [(pos, round(share, 2)) for pos, share in shares if share >= LOOKS and 0 < pos != part.pos]
    return Part(part.layer, part.pos, part.share, part.head, tuple(looks))


def _labels(model: "TransformerBridge", run: Run) -> list[str]:
    """The tokens at each position: of all prompts, the first two where they differ."""
    labels = []
    for column in run.tokens.T.tolist():
        texts = list(dict.fromkeys(repr(str(model.to_string([token]))) for token in column))
        labels.append(", ".join(texts[:2]) + (" …" if len(texts) > 2 else ""))
    return labels


class Insides:
    """The neurons of the MLPs of a contrast: which carry most of the change, and what they read or write.

    texts: name -> text, at whose ends early neurons are read; None: they are told by what they write
    """

    def __init__(self, contrast: Contrast, texts: Mapping[str, str] | None = None, k: int = 8):
        self.contrast, self.texts, self.k = contrast, texts, k

    @torch.no_grad()
    def of(self, part: Part) -> Inside:
        """The k neurons of an MLP with the largest shares."""
        at = part.layer, part.pos
        totals = self.contrast.totals().values[at] / float(self.contrast.change.mean())
        pair = (self.contrast.base, self.contrast.source)
        base, source = (run.at("post", part.layer)[:, part.pos].mean(0).tolist() for run in pair)
        early = part.layer < READABLE * self.contrast.model.cfg.n_layers
        read, rows = early and bool(self.texts), []
        for neuron in totals.abs().topk(min(self.k, len(totals))).indices.tolist():
            up = base[neuron] >= source[neuron]
            words = self._switches(part.layer, neuron, up) if read else self._writes(part.layer, neuron, up)
            share, here, there = float(totals[neuron]), base[neuron], source[neuron]
            rows.append((f"L{part.layer}N{neuron}", round(share, 3), round(here, 3), round(there, 3), words))
        writes = "writes more of (seldom words so early)" if early else "writes more of"
        return Inside("most so on" if read else writes, tuple(rows))

    def _writes(self, layer: int, neuron: int, up: bool) -> str:
        """The tokens that the neuron's change raises most."""
        table = value_tokens(self.contrast.model, (layer, neuron), WORDS)
        return " ".join(map(repr, table["raises" if up else "lowers"]))

    def _switches(self, layer: int, neuron: int, up: bool) -> str:
        """The texts on which the neuron goes furthest in the direction in which it changes."""
        assert self.texts is not None
        read = self._reads[layer][:, neuron]
        names, found = [*self.texts], read * (1 if up else -1)
        best = found.topk(min(WORDS, len(names))).indices.tolist()
        return ", ".join(f"{names[n]} {read[n]:.1f}" for n in best)

    @cached_property
    def _reads(self) -> Float[Tensor, "layer text neuron"]:
        """What each neuron has at the end of each text. Without hooks, as in `Turning`."""
        assert self.texts is not None
        texts, model, found = [*self.texts.values()], self.contrast.model, []
        for begin in range(0, len(texts), AT_ONCE):
            run = run_of(model, texts[begin : begin + AT_ONCE])
            rows, ends = torch.arange(len(run.tokens)), run.batch.position(-1).cpu()
            layers = range(model.cfg.n_layers)
            found.append(torch.stack([run.at("post", layer)[rows, ends].float().cpu() for layer in layers]))
        return torch.cat(found, 1)
