"""Followed back through a model: from a number at the end, layer by layer, to what it is made of.

Two things are followed in this way: the change between two prompts (`Contrast`), and one prompt alone with
patterns and norms held (`FrozenRun`). Both write each step as a slope times what changed; which slope, and
what is left beside it, is all in which they differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, check_layer, gradients, mlp_width, one_of
from mechlab.metrics import Metric, per_prompt
from mechlab.results import Scores
from mechlab.runs.fast import Fast
from mechlab.runs.matrices import Affine, project
from mechlab.runs.norms import Norm, wide
from mechlab.runs.run import NotResumable, Run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Place = tuple[int, int, int]  # a neuron at a position: (layer, position, neuron)
UNITS = {"neuron": ("layer", "pos", "neuron"), "mlp": ("layer", "pos"), "head": ("layer", "pos", "head")}
NEAR = 1e-4  # inputs of an activation that are closer have the tangent between them for their secant
ROWS = 64  # neurons whose own changes are followed back together
Note = Callable[[str, int, Tensor], None]  # told the kind of thing, the layer, and the slope or the rest


@dataclass(frozen=True)
class Direct:
    """What some neurons are made of, without going through other neurons: dims begin with "target".

    neurons:    [target layer pos neuron], through the stream, heads with their patterns, and norms held
    embeddings: [target pos];  patterns: [target layer pos head], 0 for one prompt
    rest:       [target]: norms that changed (two prompts), or biases (one)
    change:     [target], each neuron's own change, or value, to which the others add up
    """

    neurons: Float[Tensor, "target layer pos neuron"]
    embeddings: Float[Tensor, "target pos"]
    patterns: Float[Tensor, "target layer pos head"]
    rest: Float[Tensor, "target"]
    change: Float[Tensor, "target"]

    @property
    def gap(self) -> Float[Tensor, "target"]:
        """How much is missing: 0 but for rounding."""
        found = sum(part.flatten(1).sum(1) for part in (self.neurons, self.embeddings, self.patterns))
        return self.change - found - self.rest


class Following:
    """One run, or two whose change is followed. See `Contrast` and `FrozenRun`.

    change: [batch], what the parts add up to
    """

    rest: ClassVar[str]  # what is left beside slopes, and followed no further
    nothing: ClassVar[str]  # what is said where there is nothing to follow

    @torch.no_grad()
    def __init__(self, model: "TransformerBridge", runs: Sequence[Run], metric: Metric):
        fast = [run for run in runs if isinstance(run, Fast)]
        if len(fast) < len(runs):
            raise NotResumable(
                "Changes are followed through matrices, and those of this model are not known."
            )
        if any(run.edits or run.elsewhere for run in fast):
            raise ValueError("base and source are runs of prompts, without edits.")
        self.model, self.runs, self.base, self.metric = model, fast, fast[0], metric
        self.change = self._changed([run.value(metric) for run in fast])
        if not (self.change.abs() > 1e-6).all():
            raise ValueError(self.nothing)
        slope, rest, bent = self._from_metric()
        self._last = slope, rest, bent
        self._slopes: dict[str, list[Tensor]] = {"neuron": [], "head": []}
        self._errors: dict[str, list[Tensor]] = {"pattern": [], "rest": [rest]}
        first = self._back(slope, self._note)
        embedded = (first * self._changed(self._streams(0))).sum((1, 2))
        rests = torch.stack([each.sum(1) for each in self._errors["rest"]]).sum(0)
        patterns = torch.stack([each.sum((1, 2)) for each in self._errors["pattern"]]).sum(0)
        self._flow = torch.stack([embedded, patterns, rests, bent], 1)
        missing = (self._flow.sum(1) - self.change).abs()
        if (missing > 1e-3 * (1 + self._flow.abs().sum(1))).any():
            raise NotResumable(f"The changes do not add up in this model: {missing.max():.2g} are missing.")

    def totals(self, unit: str = "neuron") -> Scores:
        """How much of the change goes through each part: dims ("layer", "pos", and "neuron" or "head").

        unit: "neuron", "mlp" (all its neurons) or "head". No partition: what goes through a neuron goes on
        through later heads and neurons, and counts there again.
        """
        one_of("unit", unit, UNITS)
        if unit == "head":
            changes = [self._changed(self._at("z", layer)) for layer in range(len(self._layers))]
        else:
            changes = self._neurons
        slopes = self._slopes["head" if unit == "head" else "neuron"]
        found = [slope * change for slope, change in zip(slopes, changes, strict=True)]
        found = found if unit == "neuron" else [each.sum(-1) for each in found]
        return self._scores(torch.stack(found, 1), UNITS[unit], "change through it")

    def changes(self) -> Scores:
        """How much each neuron changed: dims ("layer", "pos", "neuron"). The baseline of every ranking."""
        return self._scores(torch.stack(self._neurons, 1), UNITS["neuron"], "change of the activation")

    @torch.no_grad()
    def direct(self, targets: Sequence[Place]) -> Direct:
        """What changed some neurons directly: a row of the graph for each (layer, position, neuron).

        For one pair of prompts. The rows are dense: 30 layers of 1,536 neurons at 10 positions are 2 MB each.
        """
        if len(self.change) != 1:
            raise ValueError(f"A row belongs to one pair of prompts, and these are {len(self.change)}.")
        at_least("the number of targets", len(targets), 1)
        places = self.base.tokens.shape[1]
        targets = [check_place(self.model, places, target) for target in targets]
        some = [self._rows(targets[begin : begin + ROWS]) for begin in range(0, len(targets), ROWS)]
        return Direct(*(torch.cat(parts) for parts in zip(*some, strict=True)))

    @torch.no_grad()
    def direct_on_metric(self) -> Direct:
        """What changed the metric directly: one row, as of a neuron behind the last layer.

        A `ValueError` for a metric that is not linear in the logits: no row of parts adds up to its change.
        """
        slope, rest, bent = self._last
        if (bent.abs() > 1e-3 * self.change.abs()).any():
            raise ValueError("The metric is not linear in the logits: take ml.logit_difference.")
        return Direct(*self._followed(slope, {}, [rest], self.change))

    def _rows(self, targets: Sequence[Place]) -> tuple[Tensor, ...]:
        """The fields of `Direct` for some targets, which are followed back together."""
        entering, rests = {}, []
        positions, width = self.base.tokens.shape[1], self._layers[0].up[0].shape[1]
        for layer in {target[0] for target in targets}:
            neurons = torch.zeros(len(targets), positions, width).to(self.base.resid_pre[0])
            for row, (its, pos, neuron) in enumerate(targets):
                neurons[row, pos, neuron] = float(its == layer)
            entering[layer], rest = self._into_mlp(layer, neurons)
            rests.append(rest)
        change = torch.stack([self._neurons[layer][0, pos, n] for layer, pos, n in targets])
        nothing = torch.zeros(len(targets), *self.base.resid_pre[0].shape[1:]).to(self.base.resid_pre[0])
        return self._followed(nothing, entering, rests, change)

    def _followed(
        self, slope: Tensor, entering: dict[int, Tensor], rests: Sequence[Tensor], change: Tensor
    ) -> tuple[Tensor, ...]:
        """The fields of `Direct` for slopes at the end, and for those that enter on the way."""
        kept: dict[str, list[Tensor]] = {"neuron": [], "pattern": [], "rest": [*rests]}

        def note(kind: str, layer: int, found: Tensor) -> None:
            if kind == "neuron":
                found = found * self._neurons[layer]
            if kind in kept:
                kept[kind].append(found)

        first = self._back(slope, note, entering)
        embedded = (first * self._changed(self._streams(0))).sum(2)
        rest = torch.stack([each.sum(1) for each in kept["rest"]]).sum(0)
        backwards = lambda kind: torch.stack(kept[kind][::-1], 1)
        parts = (backwards("neuron"), embedded, backwards("pattern"), rest, change)
        return tuple(each.cpu() for each in parts)

    # Backwards through the layers

    def _back(
        self, slope: Float[Tensor, "row pos d_model"], note: Note, entering: dict[int, Tensor] | None = None
    ) -> Float[Tensor, "row pos d_model"]:
        """From the slope for the last stream to that for the embeddings.

        note:     told the slopes for "neuron" and "head", and what "pattern" and "rest" come to
        entering: slopes that begin at what the MLP of a layer reads. Then no other MLP is passed
        """
        parallel = self.base.weights.parallel
        for layer in reversed(range(len(self._layers))):
            added = (
                torch.zeros_like(slope) if entering is None else entering.get(layer, torch.zeros_like(slope))
            )
            neurons, rest = self._out_of_mlp(layer, slope)
            note("neuron", layer, neurons)
            note("rest", layer, rest)
            if entering is None:
                added, rest = self._into_mlp(layer, neurons)
                note("rest", layer, rest)
            slope = slope if parallel else slope + added
            slope = slope + self._attention(layer, slope, note) + (added if parallel else 0)
        return slope

    def _attention(
        self, layer: int, slope: Float[Tensor, "row pos d_model"], note: Note
    ) -> Float[Tensor, "row pos d_model"]:
        """From the slope for what attention writes to that for the stream it reads."""
        W, weights = self._layers[layer], self.base.weights
        slope, behind = self._behind(W.norms.after_attention, "z", layer, W.out, slope)
        heads, constant = self._across(W.out, slope)
        heads = heads.unflatten(-1, (weights.heads, -1))
        note("head", layer, heads)
        patterns = self._at("pattern", layer)
        note("pattern", layer, (heads * self._elsewhere(patterns, layer)).sum(-1))
        looked = self._mean(patterns).expand(len(slope), -1, -1, -1)
        back = einsum(looked, heads, "row pos head key, row pos head d_head -> row key head d_head")
        back = back.unflatten(2, (weights.kv_heads, -1)).sum(3)  # query heads that share a value
        read, value = self._across(W.V, back.flatten(2))
        slope, before = self._through(W.norms.before_attention, self._streams(layer), read)
        note("rest", layer, behind + constant + value + before)
        return slope

    def _out_of_mlp(
        self, layer: int, slope: Float[Tensor, "row pos d_model"]
    ) -> tuple[Float[Tensor, "row pos d_mlp"], Float[Tensor, "row pos"]]:
        """From the slope for what an MLP writes to that for its neurons, and what is left."""
        W = self._layers[layer]
        slope, behind = self._behind(W.norms.after_mlp, "post", layer, W.down, slope)
        slope, constant = self._across(W.down, slope)
        return slope, behind + constant

    def _into_mlp(
        self, layer: int, neurons: Float[Tensor, "row pos d_mlp"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        """From the slope for the neurons to that for the stream the MLP reads, and what is left."""
        W, weights = self._layers[layer], self.base.weights
        streams = self._streams(layer) if weights.parallel else self._middles(layer)
        reads = [weights.mlp_in(layer, stream) for stream in streams]
        up = [project(x, W.up) for x in reads]
        if W.gate is None:
            back, constant = self._across(W.up, neurons * self._secant(weights.act, up))
        else:
            gate = [project(x, W.gate) for x in reads]
            opens, carries = self._gated(weights.act, gate, up)
            back, constant = self._across(W.gate, neurons * opens)
            more, value = self._across(W.up, neurons * carries)
            back, constant = back + more, constant + value
        back, before = self._through(W.norms.before_mlp, streams, back)
        return back, before + constant

    def _from_metric(
        self,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos"], Float[Tensor, "batch"]]:
        """The slope for the last stream, what is left, and what a bent metric adds."""
        weights, metric = self.base.weights, self.base.fitted(self.metric)
        raw = [weights.last(x) @ weights.W_U + weights.b_U for x in self._streams(len(self._layers))]
        slopes, logits = [], [weights.capped(each) for each in raw]
        with gradients():
            for each in logits:
                leaf = each.detach().clone().requires_grad_()
                total = per_prompt(metric, leaf).sum()
                if not total.requires_grad:
                    self.base.check_slope(metric)
                slopes.append(torch.autograd.grad(total, leaf)[0])
        slope = self._mean(slopes)
        bent = self.change - (slope * self._changed(logits)).sum((1, 2))
        slope = slope if weights.cap is None else slope * self._secant(weights.capped, raw)
        slope, constant = self._across((weights.W_U, weights.b_U), wide(slope))
        slope, before = self._through(weights.last, self._streams(len(self._layers)), slope)
        return slope, constant + before, bent

    def _note(self, kind: str, layer: int, found: Tensor) -> None:
        """Keep what comes back, first layers first."""
        (self._slopes if kind in self._slopes else self._errors)[kind].insert(0, found)

    def _behind(
        self, norm: Norm | None, site: str, layer: int, out: Affine, slope: Float[Tensor, "row pos d_model"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        """`_through` a norm of what attention or MLP writes, which is computed only where there is one."""
        written = [] if norm is None else [project(x.flatten(2), out) for x in self._at(site, layer)]
        return self._through(norm, written, slope)

    # What the runs have, and in what one run differs from two

    @cached_property
    def _neurons(self) -> list[Float[Tensor, "batch pos d_mlp"]]:
        """How the neurons of each layer changed."""
        return [self._changed(self._at("post", layer)) for layer in range(len(self._layers))]

    @property
    def _layers(self) -> Sequence:
        return self.base.weights.layers

    def _at(self, site: str, layer: int) -> list[Tensor]:
        return [wide(run.at(site, layer)) for run in self.runs]

    def _streams(self, layer: int) -> list[Tensor]:
        return [wide(run.resid_pre[layer]) for run in self.runs]

    def _middles(self, layer: int) -> list[Tensor]:
        return [wide(run.resid_mid[layer]) for run in self.runs]

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        """What stands for both."""
        return sum(values[1:], values[0]) / len(values)

    def _changed(self, values: Sequence[Tensor]) -> Tensor:
        """By how much base differs; from zero, where there is no other."""
        raise NotImplementedError

    def _secant(self, f: Callable[[Tensor], Tensor], values: Sequence[Tensor]) -> Tensor:
        """A slope for `_changed(values)` that gives all that f changes by."""
        raise NotImplementedError

    def _gated(
        self, act: Callable[[Tensor], Tensor], gate: Sequence[Tensor], up: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Slopes of act(gate) · up, for the gate and for what it lets through."""
        raise NotImplementedError

    def _elsewhere(self, patterns: Sequence[Tensor], layer: int) -> Float[Tensor, "#row pos head d_head"]:
        """What heads hand on only because their patterns changed."""
        raise NotImplementedError

    def _across(self, matrix: Affine, slope: Float[Tensor, "row pos out"]) -> tuple[Tensor, Tensor]:
        """From the slope for what a matrix gives to that for what it is given, and what its bias comes to."""
        raise NotImplementedError

    def _through(
        self, norm: Norm | None, streams: Sequence[Tensor], slope: Float[Tensor, "row pos d_model"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        """The slope for what a norm is given, and what is left beside it."""
        raise NotImplementedError

    def _parts(self, *parts: str) -> Scores:
        """The flow, without the patterns where they are held."""
        flow = self._flow if "patterns" in parts else self._flow[:, [0, 2, 3]]
        return self._scores(flow, ("part",), "part of the change", {"part": [*parts]}, self.change)

    def _scores(self, found: Tensor, dims: tuple[str, ...], name: str, labels=None, whole=None) -> Scores:
        units = self.base.batch.units
        return Scores.over_prompts(found.cpu(), dims, name, labels=labels or {}, whole=whole, units=units)


def check_place(model: "TransformerBridge", places: int, place: Place) -> Place:
    """A neuron at one of `places` positions, if it is there; else a `ValueError`."""
    layer, pos, neuron = place
    layer, width = check_layer(model, layer), mlp_width(model)
    if not (0 <= pos < places and 0 <= neuron < width):
        raise ValueError(
            f"There is no neuron {neuron} at position {pos}: {width} neurons, {places} positions."
        )
    return layer, pos, neuron


def secant(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, "*any"], y: Float[Tensor, "*any"]
) -> Float[Tensor, "*any"]:
    """The slope of the line through (x, f(x)) and (y, f(y)): secant · (x − y) is f(x) − f(y).

    Where x and y are all but equal, the tangent half way between them.
    """
    step = x - y
    with gradients():
        middle = ((x + y) / 2).detach().requires_grad_()
        (tangent,) = torch.autograd.grad(f(middle).sum(), middle)
    near = step.abs() < NEAR
    return torch.where(near, tangent, (f(x) - f(y)) / torch.where(near, 1.0, step))
