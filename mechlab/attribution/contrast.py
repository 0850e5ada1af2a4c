"""Two prompts, and every change between them written out: which neuron, head or norm carries it.

Between two runs everything that a model computes changes by a secant times what its inputs change by. That
is exact, nothing is cut off after first order: for products Δ(x·y) = ȳ·Δx + x̄·Δy with means over the two
runs, for an activation the slope of the line through both values. So the change of the metric is followed
back, layer by layer, to the embeddings. Two kinds of change are followed no further, and keep their names: a
head looked elsewhere (its pattern changed), and a norm divided by another length.

That the parts add up exactly proves nothing: they do so on random weights too. Whether they are the right
ones is found out by exchanging them, kept alone and taken away, beside as many others: `kept_and_away`.

Secants for differences from a reference: Shrikumar et al. 2017 (DeepLIFT). Backward rules that hold norms and
patterns, on language models: Rezaei Jafari et al. 2025 (RelP). What is held as an error node of a graph:
Ameisen et al. 2025, who trace features of transcoders on one prompt; here it is neurons, on two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, check_layer, gradients, mlp_width, one_of
from mechlab.metrics import Metric, per_prompt
from mechlab.results import Scores
from mechlab.runs.engines import runs_of
from mechlab.runs.fast import Fast
from mechlab.runs.matrices import Affine, project
from mechlab.runs.norms import Norm, wide
from mechlab.runs.run import NotResumable, Put, Run
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Place = tuple[int, int, int]  # a neuron at a position: (layer, position, neuron)
UNITS = {"neuron": ("layer", "pos", "neuron"), "mlp": ("layer", "pos"), "head": ("layer", "pos", "head")}
NEAR = 1e-4  # inputs of an activation that are closer have the tangent between them for their secant
ROWS = 64  # neurons whose own changes are followed back together
Note = Callable[[str, int, Tensor], None]  # told the kind of thing, the layer, and the slope or the rest


@dataclass(frozen=True)
class Direct:
    """What changed some neurons, without going through other neurons: dims begin with "target".

    neurons:    [target layer pos neuron], through the stream, heads with their mean patterns, and norms held
    embeddings: [target pos];  patterns: [target layer pos head];  norms: [target], all of them
    change:     [target], each neuron's own change, to which the rest adds up
    """

    neurons: Float[Tensor, "target layer pos neuron"]
    embeddings: Float[Tensor, "target pos"]
    patterns: Float[Tensor, "target layer pos head"]
    norms: Float[Tensor, "target"]
    change: Float[Tensor, "target"]

    @property
    def gap(self) -> Float[Tensor, "target"]:
        """How much is missing: 0 but for rounding."""
        found = sum(part.flatten(1).sum(1) for part in (self.neurons, self.embeddings, self.patterns))
        return self.change - found - self.norms


class Contrast:
    """What makes the metric change from `source` to `base`, for one pair of prompts or several.

    base, source: prompts that correspond position by position, or runs (`run_of`)
    change:       [batch], metric on base minus metric on source

    A `ValueError` where the metric is the same on both; `NotResumable` where the fast engine does not know
    the model, since the changes are followed through its matrices.
    """

    @torch.no_grad()
    def __init__(
        self, model: "TransformerBridge", base: Prompts | Run, source: Prompts | Run, metric: Metric
    ):
        base, source = runs_of(model, base, source)
        if not isinstance(base, Fast) or not isinstance(source, Fast):
            raise NotResumable(
                "Changes are followed through matrices, and those of this model are not known."
            )
        if any(run.edits or run.elsewhere for run in (base, source)):
            raise ValueError("base and source are runs of prompts, without edits.")
        self.model, self.base, self.source, self.metric = model, base, source, metric
        self.change = base.value(metric) - source.value(metric)
        if not (self.change.abs() > 1e-6).all():
            raise ValueError("The metric is the same on base and source: there is no change to follow.")
        slope, bent = self._from_metric()
        slope, length = self._through(base.weights.last, self._streams(len(self._layers)), slope)
        self._last = slope, length, bent
        self._slopes: dict[str, list[Tensor]] = {"neuron": [], "head": []}
        self._errors: dict[str, list[Tensor]] = {"pattern": [], "norm": [length]}
        first = self._back(slope, self._note)
        embedded = (first * self._changed(self._streams(0))).sum((1, 2))
        norms = torch.stack([each.sum(1) for each in self._errors["norm"]]).sum(0)
        patterns = torch.stack([each.sum((1, 2)) for each in self._errors["pattern"]]).sum(0)
        self._flow = torch.stack([embedded, patterns, norms, bent], 1)
        missing = (self._flow.sum(1) - self.change).abs()
        if (missing > 1e-3 * (1 + self._flow.abs().sum(1))).any():
            raise NotResumable(f"The changes do not add up in this model: {missing.max():.2g} are missing.")

    def flow(self) -> Scores:
        """Where the change comes from: dims ("part",). Exact: `whole` is the change of the metric.

        Embeddings: followed through all secants; patterns: heads that looked elsewhere; norms: lengths that
        changed; metric: what a metric that is not linear in the logits does beside its mean slope.
        """
        parts = ["embeddings", "patterns", "norms", "metric"]
        return self._scores(self._flow, ("part",), "part of the change", {"part": parts}, self.change)

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

    def patterns(self) -> Scores:
        """What is due to each head's looking elsewhere: dims ("layer", "pos", "head")."""
        return self._scores(torch.stack(self._errors["pattern"], 1), UNITS["head"], "change of its pattern")

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
        slope, length, bent = self._last
        if (bent.abs() > 1e-3 * self.change.abs()).any():
            raise ValueError("The metric is not linear in the logits: take ml.logit_difference.")
        return Direct(*self._followed(slope, {}, [length], self.change))

    def _rows(self, targets: Sequence[Place]) -> tuple[Tensor, ...]:
        """The fields of `Direct` for some targets, which are followed back together."""
        entering, lengths = {}, []
        positions, width = self.base.tokens.shape[1], self._layers[0].up[0].shape[1]
        for layer in {target[0] for target in targets}:
            neurons = torch.zeros(len(targets), positions, width).to(self.base.resid_pre)
            for row, (its, pos, neuron) in enumerate(targets):
                neurons[row, pos, neuron] = float(its == layer)
            entering[layer], length = self._into_mlp(layer, neurons)
            lengths.append(length)
        change = torch.stack([self._neurons[layer][0, pos, n] for layer, pos, n in targets])
        nothing = torch.zeros(len(targets), *self.base.resid_pre[0].shape[1:]).to(self.base.resid_pre)
        return self._followed(nothing, entering, lengths, change)

    def _followed(
        self, slope: Tensor, entering: dict[int, Tensor], lengths: Sequence[Tensor], change: Tensor
    ) -> tuple[Tensor, ...]:
        """The fields of `Direct` for slopes at the end, and for those that enter on the way."""
        kept: dict[str, list[Tensor]] = {"neuron": [], "pattern": [], "norm": [*lengths]}

        def note(kind: str, layer: int, found: Tensor) -> None:
            if kind == "neuron":
                found = found * self._neurons[layer]
            if kind in kept:
                kept[kind].append(found)

        first = self._back(slope, note, entering)
        embedded = (first * self._changed(self._streams(0))).sum(2)
        norms = torch.stack([each.sum(1) for each in kept["norm"]]).sum(0)
        backwards = lambda kind: torch.stack(kept[kind][::-1], 1)
        return tuple(
            each.cpu() for each in (backwards("neuron"), embedded, backwards("pattern"), norms, change)
        )

    # Backwards through the layers

    def _back(
        self, slope: Float[Tensor, "row pos d_model"], note: Note, entering: dict[int, Tensor] | None = None
    ) -> Float[Tensor, "row pos d_model"]:
        """From the slope for the last stream to that for the embeddings.

        note:     told the slopes for "neuron" and "head", and what the errors "pattern" and "norm" come to
        entering: slopes that begin at what the MLP of a layer reads. Then no other MLP is passed
        """
        parallel = self.base.weights.parallel
        for layer in reversed(range(len(self._layers))):
            added = (
                torch.zeros_like(slope) if entering is None else entering.get(layer, torch.zeros_like(slope))
            )
            neurons, length = self._out_of_mlp(layer, slope)
            note("neuron", layer, neurons)
            note("norm", layer, length)
            if entering is None:
                added, length = self._into_mlp(layer, neurons)
                note("norm", layer, length)
            slope = slope if parallel else slope + added
            slope = slope + self._attention(layer, slope, note) + (added if parallel else 0)
        return slope

    def _attention(
        self, layer: int, slope: Float[Tensor, "row pos d_model"], note: Note
    ) -> Float[Tensor, "row pos d_model"]:
        """From the slope for what attention writes to that for the stream it reads."""
        W, weights = self._layers[layer], self.base.weights
        slope, length = self._behind(W.norms.after_attention, "z", layer, W.out, slope)
        W_O = W.out[0].unflatten(0, (weights.heads, -1))
        heads = einsum(slope, wide(W_O), "row pos d_model, head d_head d_model -> row pos head d_head")
        note("head", layer, heads)
        patterns, values = self._at("pattern", layer), self._at("v", layer)
        mean_value = self._mean(values).repeat_interleave(weights.heads // weights.kv_heads, dim=2)
        gathered = einsum(
            self._changed(patterns), mean_value, "b pos head key, b key head d_head -> b pos head d_head"
        )
        note("pattern", layer, (heads * gathered).sum(-1))
        looked = self._mean(patterns).expand(len(slope), -1, -1, -1)
        back = einsum(looked, heads, "row pos head key, row pos head d_head -> row key head d_head")
        back = back.unflatten(2, (weights.kv_heads, -1)).sum(3)  # query heads that share a value
        read = back.flatten(2) @ wide(W.V[0]).T
        slope, shorter = self._through(W.norms.before_attention, self._streams(layer), read)
        note("norm", layer, length + shorter)
        return slope

    def _out_of_mlp(
        self, layer: int, slope: Float[Tensor, "row pos d_model"]
    ) -> tuple[Float[Tensor, "row pos d_mlp"], Float[Tensor, "row pos"]]:
        """From the slope for what an MLP writes to that for its neurons, and what a norm behind it does."""
        W = self._layers[layer]
        slope, length = self._behind(W.norms.after_mlp, "post", layer, W.down, slope)
        return slope @ wide(W.down[0]).T, length

    def _into_mlp(
        self, layer: int, neurons: Float[Tensor, "row pos d_mlp"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        """From the slope for the neurons to that for the stream the MLP reads, and what its norm does."""
        W, weights = self._layers[layer], self.base.weights
        streams = self._streams(layer) if weights.parallel else self._middles(layer)
        reads = [weights.mlp_in(layer, stream) for stream in streams]
        up = [project(x, W.up) for x in reads]
        if W.gate is None:
            back = (neurons * secant(weights.act, *up)) @ wide(W.up[0]).T
        else:
            gate = [project(x, W.gate) for x in reads]
            open = self._mean([weights.act(x) for x in gate])
            back = (neurons * self._mean(up) * secant(weights.act, *gate)) @ wide(W.gate[0]).T
            back = back + (neurons * open) @ wide(W.up[0]).T
        return self._through(W.norms.before_mlp, streams, back)

    def _from_metric(self) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch"]]:
        """The slope for what the last norm makes of the stream, and what a bent metric adds."""
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
        slope = slope if weights.cap is None else slope * secant(weights.capped, *raw)
        return wide(slope) @ wide(weights.W_U).T, bent

    def _note(self, kind: str, layer: int, found: Tensor) -> None:
        """Keep what comes back, first layers first."""
        (self._slopes if kind in self._slopes else self._errors)[kind].insert(0, found)

    def _behind(
        self, norm: Norm | None, site: str, layer: int, out: Affine, slope: Float[Tensor, "row pos d_model"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        """`_through` a norm of what attention or MLP writes, which is computed only where there is one."""
        written = [] if norm is None else [project(x.flatten(2), out) for x in self._at(site, layer)]
        return self._through(norm, written, slope)

    # What the two runs have

    @cached_property
    def _neurons(self) -> list[Float[Tensor, "batch pos d_mlp"]]:
        """How the neurons of each layer changed."""
        return [self._changed(self._at("post", layer)) for layer in range(len(self._layers))]

    @property
    def _layers(self) -> Sequence:
        return self.base.weights.layers

    def _at(self, site: str, layer: int) -> list[Tensor]:
        return [wide(run.at(site, layer)) for run in (self.base, self.source)]

    def _streams(self, layer: int) -> list[Tensor]:
        return [wide(run.resid_pre[layer]) for run in (self.base, self.source)]

    def _middles(self, layer: int) -> list[Tensor]:
        return [wide(run.resid_mid[layer]) for run in (self.base, self.source)]

    @staticmethod
    def _mean(pair: Sequence[Tensor]) -> Tensor:
        return (pair[0] + pair[1]) / 2

    @staticmethod
    def _changed(pair: Sequence[Tensor]) -> Tensor:
        return pair[0] - pair[1]

    @staticmethod
    def _through(
        norm: Norm | None, pair: Sequence[Tensor], slope: Float[Tensor, "row pos d_model"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        """The slope for what a norm is given, and what the change of its length comes to."""
        return (slope, torch.zeros_like(slope[..., 0])) if norm is None else norm.secant(*pair, slope)

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


@torch.no_grad()
def kept_and_away(contrast: Contrast, ranking: Scores, sizes: Sequence[int]) -> Scores:
    """How much of the change is left when few neurons are kept, or taken away: dims ("what", "size").

    ranking: of neurons at positions, such as `contrast.totals()` or any other with dims ("layer", "pos",
             "neuron"): the largest of each prompt by size
    sizes:   how many are kept, and how many taken away

    Exchanged live on base: attention, norms and all other neurons compute on. kept: all other neurons have
    their values on source. away: these neurons have them. 1 = all of the change is left, 0 = none. Compare
    with a ranking by chance, and with one by the size of the change: only beside them a curve says something.
    """
    if ranking.dims != UNITS["neuron"]:
        raise ValueError(
            f"A ranking of neurons has the dims {UNITS['neuron']}, and this one has {ranking.dims}."
        )
    base, source = contrast.base, contrast.source
    scores = ranking.values[None] if ranking.per_prompt is None else ranking.per_prompt
    every = scores[0].numel()
    for size in sizes:
        if not 0 <= size <= every:
            raise ValueError(f"There are {every} neurons at positions, and a size of {size} is asked for.")
    order = scores.flatten(1).abs().argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1).view(scores.shape).to(base.tokens.device)  # the rank of each
    limits = torch.tensor([*sizes], device=place.device)[:, None, None, None]
    edits = []
    for layer in range(scores.shape[1]):
        among = place[:, layer] < limits  # [size, batch, pos, neuron]
        edits.append(Put("post", layer, source.at("post", layer)[None], torch.cat([~among, among])))
    ends = source.value(contrast.metric)
    left = (base.edited(contrast.metric, edits) - ends) / contrast.change
    labels = {"what": ["kept", "away"], "size": [str(size) for size in sizes]}
    left = left.unflatten(0, (2, -1)).movedim(2, 0).cpu()
    return Scores.over_prompts(
        left, ("what", "size"), "share of the change left", labels=labels, units=base.batch.units
    )
