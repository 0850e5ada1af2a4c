"""Knock-outs: the model with everything outside a circuit held still.

A head is knocked out by holding its output at the mean over reference prompts in which the task cannot be
done (the IOI paper: three unrelated names), for each template and each position apart. MLPs, norms and
embeddings stay, unless the circuit says which MLPs it has. What the numbers are good for stands in
`criteria.py`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.arguments import one_of
from mechlab.circuits.circuits import Circuit, CircuitError
from mechlab.metrics import Metric
from mechlab.runs.engines import run_of
from mechlab.runs.run import Put, Run
from mechlab.statistics import Estimate, estimate
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@runtime_checkable
class Task(Protocol):
    """Prompts that know their templates and positions, such as `mechlab.circuits.ioi.IOIPrompts`."""

    tokens: Int[Tensor, "batch pos"]
    metric: Metric
    templates: Sequence[str]
    positions: Mapping[str, Int[Tensor, "batch"]]
    pairs: Int[Tensor, "batch"]


class CircuitRuns:
    """The model on a task's prompts, kept so that it can be run with any heads knocked out.

    intact: [prompt], the metric of the whole model
    how:    "mean", over the reference prompts of the same template at the same position; "resample", one of
            them for each prompt; "zero"
    metric: another one than the prompts' own
    """

    def __init__(
        self,
        model: "TransformerBridge",
        prompts: Task,
        reference: Task,
        how: str = "mean",
        *,
        metric: Metric | None = None,
        seed: int = 0,
    ):
        one_of("how", how, ("mean", "resample", "zero"))
        _check_task(prompts, "prompts")
        _check_task(reference, "reference")
        if prompts.tokens.shape[1] < reference.tokens.shape[1]:
            raise CircuitError(
                f"The prompts have {prompts.tokens.shape[1]} positions and the reference "
                f"{reference.tokens.shape[1]}: take both from the same templates."
            )
        self.model, self.prompts, self.how = model, prompts, how
        self.metric = metric or prompts.metric
        self.run = run_of(model, _read(prompts))
        self.intact = self.run.value(self.metric)
        usual = None if how == "zero" else run_of(model, _read(reference), like=self.run)
        self.z, self.mlp_out = (
            self._stand_in(site, reference.templates, usual, seed) for site in ("z", "mlp_out")
        )

    def _stand_in(
        self, site: str, templates: Sequence[str], usual: Run | None, seed: int
    ) -> Float[Tensor, "layer batch pos ..."]:
        """What the prompts get where something is knocked out: from reference prompts of their template."""
        layers = range(self.model.cfg.n_layers)
        whole = torch.zeros_like(torch.stack([self.run.at(site, layer) for layer in layers]))
        generator = torch.Generator().manual_seed(seed)
        if usual is None:
            return whole
        for template in dict.fromkeys(self.prompts.templates):
            mine, theirs = (
                [n for n, other in enumerate(each) if other == template]
                for each in (self.prompts.templates, templates)
            )
            if not theirs:
                raise CircuitError(f"No reference prompt has the template {template!r}.")
            same = self._same(usual, mine, theirs)
            drawn = torch.randint(len(theirs), (len(mine),), generator=generator)
            drawn = _others(drawn, same, generator, template)
            for layer in layers:
                found = usual.at(site, layer)[theirs]
                value = found.mean(0, keepdim=True) if self.how == "mean" else found[drawn]
                whole[layer, mine, : found.shape[1]] = value.expand(len(mine), *value.shape[1:])
        return whole

    def _same(self, usual: Run, mine: list[int], theirs: list[int]) -> Bool[Tensor, "batch its_batch"]:
        """Which reference prompts are a prompt itself."""
        count = usual.tokens.shape[1]
        ours, others = self.run.tokens[mine, :count], usual.tokens[theirs]
        return (ours[:, None] == others[None]).all(-1).cpu()

    def keeping(self, circuit: Circuit | None) -> Bool[Tensor, "layer batch pos head"]:
        """Which heads a circuit keeps, where: each prompt at its own positions. None: the whole model."""
        layers, prompts, count, heads = self.z.shape[:4]
        kept = torch.full((layers, prompts, count, heads), circuit is None, device=self.z.device)
        if circuit is None:
            return kept
        stray = [layer for layer in circuit.mlps or () if not 0 <= layer < layers]
        if stray:
            raise CircuitError(
                f"The circuit names the MLP of layer {stray[0]}, which the model does not have."
            )
        for layer, head in circuit.heads:
            if not (0 <= layer < layers and 0 <= head < heads):
                raise CircuitError(
                    f"The circuit names head {layer}.{head}; the model has layers 0 to {layers - 1} and "
                    f"heads 0 to {heads - 1}."
                )
            at = circuit.positions((layer, head))
            if at is None:
                kept[layer, :, :, head] = True
                continue
            for name in at:
                if name not in self.prompts.positions:
                    raise CircuitError(
                        f"The prompts have no position {name!r}; they have "
                        f"{', '.join(map(repr, self.prompts.positions))}."
                    )
                places = self.run.batch.position(self.prompts.positions[name], f"The position {name!r}")
                kept[layer, torch.arange(prompts), places, head] = True
        return kept

    def measure(
        self, circuits: Sequence[Circuit | None], metric: Metric | None = None
    ) -> Float[Tensor, "circuit batch"]:
        """The metric (its own or another) of each prompt when everything outside a circuit is knocked out."""
        circuits = _listed(circuits)
        mlps = [
            [circuit is None or circuit.mlps is None or layer in circuit.mlps for layer in range(len(self.z))]
            for circuit in circuits
        ]
        return self.measure_kept(torch.stack([self.keeping(c) for c in circuits]), torch.tensor(mlps), metric)

    def removing(self, sets: Sequence[Circuit]) -> Float[Tensor, "set batch"]:
        """The metric when the whole model is left, without these heads at their positions."""
        return self.measure_kept(torch.stack([~self.keeping(part) for part in _listed(sets)]))

    def measure_kept(
        self,
        kept: Bool[Tensor, "circuit layer batch pos head"],
        mlps: Bool[Tensor, "circuit layer"] | None = None,
        metric: Metric | None = None,
    ) -> Float[Tensor, "circuit batch"]:
        """The metric where only what is marked is computed and the rest stands in."""
        return self.run.edited(metric or self.metric, self.edits(kept, mlps))

    def edits(
        self,
        kept: Bool[Tensor, "circuit layer batch pos head"],
        mlps: Bool[Tensor, "circuit layer"] | None = None,
    ) -> list[Put]:
        """What stands in for the heads and MLPs that are not kept, as edits of the run."""
        puts = [Put("z", layer, self.z[layer][None], ~kept[:, layer]) for layer in range(len(self.z))]
        for layer, kept_mlp in enumerate([] if mlps is None else mlps.T):
            if not kept_mlp.all():
                gone = ~kept_mlp[:, None, None].to(self.z.device)
                puts.append(Put("mlp_out", layer, self.mlp_out[layer][None], gone))
        return puts

    def mean(self, values: Float[Tensor, "batch"], draws: int = 2000, seed: int = 0) -> Estimate:
        """The mean over prompts, with an interval."""
        return estimate(values, self.prompts.pairs, draws=draws, seed=seed)

    def ratio(
        self, top: Float[Tensor, "batch"], bottom: Float[Tensor, "batch"], draws: int = 2000, seed: int = 0
    ) -> Estimate:
        """The ratio of two means over prompts, with a 95 % bootstrap interval over pairs of prompts."""
        return estimate(top, self.prompts.pairs, over=bottom, draws=draws, seed=seed)


def _check_task(prompts: Task, what: str) -> None:
    """Refuse what is no task, or one that does not say of each prompt which template it has."""
    missing = [name for name in ("tokens", "templates", "positions") if not hasattr(prompts, name)]
    if missing:
        raise CircuitError(
            f"{what} is a {type(prompts).__name__} without {', '.join(missing)}: give prompts that "
            "know their templates and positions, such as `ml.ioi_prompts(...)`."
        )
    pairs = getattr(prompts, "pairs", prompts.tokens)
    counts = len(prompts.tokens), len(prompts.templates), len(pairs)
    if len({*counts}) > 1:
        raise CircuitError("{} has {} prompts, {} templates and {} pairs.".format(what, *counts))


def _listed(circuits: Sequence[Circuit | None]) -> list[Circuit | None]:
    """Circuits as a list in which there is one."""
    if isinstance(circuits, Circuit) or not all(
        part is None or isinstance(part, Circuit) for part in circuits
    ):
        raise CircuitError(f"Give a list of circuits, and not {circuits!r:.80}.")
    if not len(circuits):
        raise CircuitError("There is no circuit to measure: the list is empty.")
    return [*circuits]


def _read(prompts: Task) -> Prompts:
    """The prompts, with where each ends if they say so."""
    ends = prompts.positions.get("end")
    return prompts.tokens if ends is None or len(ends) != len(prompts.tokens) else prompts


def _others(
    drawn: Int[Tensor, "batch"],
    same: Bool[Tensor, "batch its_batch"],
    generator: torch.Generator,
    template: str,
) -> Int[Tensor, "batch"]:
    """The draw, with another reference prompt where a prompt has drawn itself."""
    if same.all(1).any():
        raise CircuitError(
            f"The reference prompts of the template {template!r} are the prompt itself, so a knock-out would "
            'change nothing. Take others, such as `prompts.corrupted("abc")`, or how="zero".'
        )
    for row in same[torch.arange(len(drawn)), drawn].nonzero()[:, 0].tolist():
        free = (~same[row]).nonzero()[:, 0]
        drawn[row] = free[torch.randint(len(free), (), generator=generator)]
    return drawn


def check_ability(knockouts: CircuitRuns) -> None:
    """A `CircuitError` when the model does not do the task: then there is no circuit to find."""
    ability = knockouts.mean(knockouts.intact)
    if ability.low <= 0 <= ability.high:
        raise CircuitError(
            f"The metric of the whole model is {ability}, not different from zero on these "
            f"{len(knockouts.intact)} prompts. There is no circuit to find: this model does not do the task."
        )
