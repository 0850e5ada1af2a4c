"""Knock-outs: the model with everything outside a circuit held still.

A head is knocked out by holding its output at the mean over reference prompts in which the task cannot be done (the
IOI paper: three unrelated names), for each template and each position apart. MLPs, norms and embeddings stay, unless
the circuit says which MLPs it has. What the numbers are good for stands in `criteria.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.circuits.circuits import Circuit, CircuitError
from mechlab.metrics import Metric
from mechlab.runs.fast import Edit, Resume


@runtime_checkable
class Task(Protocol):
    """Prompts that know their templates and positions, such as `mechlab.circuits.ioi.IOIPrompts`."""

    tokens: Int[Tensor, "prompt pos"]
    metric: Metric
    templates: Sequence[str]
    positions: Mapping[str, Int[Tensor, "prompt"]]
    pairs: Int[Tensor, "prompt"]


@dataclass(frozen=True)
class Measured:
    """A mean over prompts with its 95 % bootstrap interval, pairs of prompts drawn together."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Knockouts:
    """The model on a task's prompts, kept so that it can be run with any heads knocked out.

    intact: [prompt], the metric of the whole model
    how:    "mean", over the reference prompts of the same template at the same position; "resample", one of them for
            each prompt; "zero"
    metric: another one than the prompts' own
    """

    def __init__(
        self,
        model,
        prompts: Task,
        reference: Task,
        how: str = "mean",
        *,
        metric: Metric | None = None,
        seed: int = 0,
    ):
        if how not in ("mean", "resample", "zero"):
            raise ValueError(f'how is {how!r}; it must be "mean", "resample" or "zero".')
        if prompts.tokens.shape[1] < reference.tokens.shape[1]:
            raise CircuitError(
                f"The prompts have {prompts.tokens.shape[1]} positions and the reference {reference.tokens.shape[1]}: "
                "take both from the same templates."
            )
        self.model, self.prompts, self.how = model, prompts, how
        self.metric = metric or prompts.metric
        self.run = Resume(model, prompts.tokens)
        self.intact = self.run.ends(self.metric)
        self.z, self.mlp_out = torch.zeros_like(self.run.z), torch.zeros_like(self.run.resid_mid)
        generator = torch.Generator().manual_seed(seed)
        for template in dict.fromkeys(prompts.templates if how != "zero" else ()):
            self._stand_in(template, reference, generator)

    def _stand_in(self, template: str, reference: Task, generator: torch.Generator) -> None:
        """Fill in what the prompts of one template get where something is knocked out."""
        mine, theirs = (
            [n for n, other in enumerate(each.templates) if other == template]
            for each in (self.prompts, reference)
        )
        if not theirs:
            raise CircuitError(f"No reference prompt has the template {template!r}.")
        usual = Resume(self.model, reference.tokens[theirs], like=self.run)
        mlps = torch.stack([usual.written("mlp_out", layer) for layer in range(len(usual.layers))])
        drawn = torch.randint(len(theirs), (len(mine),), generator=generator)
        for whole, found in ((self.z, usual.z), (self.mlp_out, mlps)):
            value = found.mean(1, keepdim=True) if self.how == "mean" else found[:, drawn]
            whole[:, mine, : found.shape[2]] = value.expand(-1, len(mine), *value.shape[2:])

    def keeping(self, circuit: Circuit | None) -> Bool[Tensor, "layer prompt pos head"]:
        """Which heads a circuit keeps, where: each prompt at its own positions. None: the whole model."""
        layers, prompts, count, heads = self.z.shape[:4]
        kept = torch.full((layers, prompts, count, heads), circuit is None, device=self.z.device)
        if circuit is None:
            return kept
        for layer, head in circuit.heads:
            if not (0 <= layer < layers and 0 <= head < heads):
                raise CircuitError(
                    f"The circuit names head {layer}.{head}; the model has layers 0 to {layers - 1} and heads 0 to {heads - 1}."
                )
            at = circuit.positions((layer, head))
            if at is None:
                kept[layer, :, :, head] = True
                continue
            for name in at:
                if name not in self.prompts.positions:
                    raise CircuitError(
                        f"The prompts have no position {name!r}; they have {', '.join(map(repr, self.prompts.positions))}."
                    )
                kept[layer, torch.arange(prompts), self.prompts.positions[name], head] = True
        return kept

    def measure(
        self, circuits: Sequence[Circuit | None], metric: Metric | None = None
    ) -> Float[Tensor, "circuit prompt"]:
        """The metric (its own or another) of each prompt when everything outside a circuit is knocked out."""
        mlps = [
            [circuit is None or circuit.mlps is None or layer in circuit.mlps for circuit in circuits]
            for layer in range(len(self.z))
        ]
        return self.measure_kept(
            torch.stack([self.keeping(c) for c in circuits]), torch.tensor(mlps).T, metric
        )

    def removing(self, sets: Sequence[Circuit]) -> Float[Tensor, "set prompt"]:
        """The metric when the whole model is left, without these heads at their positions."""
        return self.measure_kept(torch.stack([~self.keeping(part) for part in sets]))

    @torch.no_grad()
    def measure_kept(
        self,
        kept: Bool[Tensor, "circuit layer prompt pos head"],
        mlps: Bool[Tensor, "circuit layer"] | None = None,
        metric: Metric | None = None,
        begin: tuple[int, Float[Tensor, "prompt pos d_model"]] | None = None,
    ) -> Float[Tensor, "circuit prompt"]:
        """The metric where only what is marked is computed and the rest stands in; taken up at the first knock-out.

        begin: a layer and the stream on entering it, which is then not computed again (see `streams`)
        """
        if begin is not None:
            (start, stream), first = begin, 0
        else:
            touched = ~kept.all(4)
            if mlps is not None and not mlps.all():
                touched = touched | ~mlps[:, :, None, None].to(touched.device)
            if not touched.any():
                return (self.run.ends(metric) if metric else self.intact).expand(len(kept), -1)
            start = int(touched.any(0).flatten(1).any(1).float().argmax())
            first = int(touched.flatten(0, 2).any(0).float().argmax())
            stream = self.run.resid_pre[start][:, first:]
        stream = stream.expand(len(kept), -1, -1, -1)
        return self.run.measure(metric or self.metric, start, stream, first, edit=self._edit(kept, mlps))

    @torch.no_grad()
    def streams(
        self, kept: Bool[Tensor, "layer prompt pos head"]
    ) -> list[Float[Tensor, "prompt pos d_model"]]:
        """The stream on entering each layer where only what is marked is computed."""
        edit, written = self._edit(kept[None], None), []

        def note(kind: str, layer: int, value: Tensor, copies: slice) -> Tensor:
            value = edit(kind, layer, value, copies)
            if kind in ("attn_out", "mlp_out") and layer < len(kept) - 1:
                written.append(value)
            return value

        begin = self.run.resid_pre[0]
        self.run.measure(self.metric, 0, begin[None], 0, edit=note)
        return list(
            accumulate((a + m for a, m in zip(written[::2], written[1::2], strict=True)), initial=begin)
        )

    def _edit(self, kept: Tensor, mlps: Tensor | None) -> Edit:
        """What the run is to do with heads and MLPs that are not kept."""

        def edit(kind: str, layer: int, value: Tensor, copies: slice) -> Tensor:
            late = self.z.shape[2] - value.shape[1]
            if kind == "z":
                mine = kept[copies, layer, :, late:, :, None]
                given = value.view(*mine.shape[:4], -1)
                return torch.where(mine, given, self.z[layer, :, late:]).view_as(value)
            if kind == "mlp_out" and mlps is not None and not mlps[copies, layer].all():
                mine = mlps[copies, layer].to(value.device)[:, None, None, None]
                value = value.unflatten(0, (-1, len(self.intact)))
                return torch.where(mine, value, self.mlp_out[layer, :, late:]).flatten(0, 1)
            return value

        return edit

    def mean(self, values: Float[Tensor, "prompt"], draws: int = 2000, seed: int = 0) -> Measured:
        """The mean over prompts, with an interval."""
        return over_pairs(self.prompts.pairs, values, None, draws, seed)

    def ratio(self, top: Tensor, bottom: Tensor, draws: int = 2000, seed: int = 0) -> Measured:
        """The ratio of two means over prompts, with a 95 % bootstrap interval over pairs of prompts."""
        return over_pairs(self.prompts.pairs, top, bottom, draws, seed)


def over_pairs(
    pairs: Int[Tensor, "prompt"],
    top: Float[Tensor, "prompt"],
    bottom: Float[Tensor, "prompt"] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Measured:
    """The mean of `top`, or its ratio to that of `bottom`, with a 95 % bootstrap interval; pairs are drawn together."""
    bottom = torch.ones_like(top) if bottom is None else bottom
    pairs = pairs.unique(return_inverse=True)[1].cpu()
    many = int(pairs.max()) + 1
    sums = [torch.zeros(many).index_add_(0, pairs, each.float().cpu()) for each in (top, bottom)]
    drawn = torch.randint(many, (draws, many), generator=torch.Generator().manual_seed(seed))
    low, high = (sums[0][drawn].sum(1) / sums[1][drawn].sum(1)).quantile(torch.tensor([0.025, 0.975]))
    return Measured((sums[0].sum() / sums[1].sum()).item(), low.item(), high.item())


def check_ability(knockouts: Knockouts) -> None:
    """A `CircuitError` when the model does not do the task: then there is no circuit to find."""
    ability = knockouts.mean(knockouts.intact)
    if ability.low <= 0 <= ability.high:
        raise CircuitError(
            f"The metric of the whole model is {ability}, not different from zero on these {len(knockouts.intact)} prompts. "
            "There is no circuit to find: this model does not do the task."
        )
