"""What a run is: some prompts that a model has read, what can be observed in it, and changed copies of it.

A technique says what is edited, once, as a list of `Put`; an engine carries it out. Two engines, one
protocol. `plain.Plain` runs the whole model with hooks, for any model that TransformerLens boots.
`fast.Fast` takes the run up where it is changed, for the models whose arithmetic it knows. `engines.run_of`
chooses. Their numbers are equal, which is a test (tests/test_runs.py).

A new site needs a hook in `SITES` for the plain engine, and its place in `fast.py`, which refuses a site
that it does not know.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.arguments import check_layer, gradients, key_value_heads, one_of
from mechlab.metrics import Metric, fitted
from mechlab.tokens import Batch

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# What can be edited, and the hook that holds it. The axes are [batch pos ...] everywhere, [batch pos head
# ...] where there are heads.
SITES = {
    "resid_pre": "hook_resid_pre",
    "q": "attn.hook_q",  # before each head's norm and before they are turned, as are keys
    "k": "attn.hook_k",  # key/value heads: several query heads may share one
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",  # the row of the query's position
    "z": "attn.hook_z",  # what a head hands to W_O
    "attn_out": "hook_attn_out",
    "post": "mlp.hook_post",  # the MLP's neurons: [batch pos d_mlp], what each hands to its row of W_out
    "mlp_out": "hook_mlp_out",
}
WITH_HEADS = ("q", "k", "v", "pattern", "z")
# How a gradient is taken back through a gated MLP, act(gate) · up: as it is, or half to each of the two
# factors with act(gate) / gate held constant (Arras et al. 2019; in RelP, Rezaei Jafari et al. 2025).
RULES = ("gradient", "half")
Chosen = Sequence[int] | slice | Int[Tensor, "row"] | Bool[Tensor, "batch"]  # some of the prompts of a run


@dataclass(frozen=True)
class Put:
    """An edit: at one site of one layer, other values stand where the run's own stood.

    value: what is put there, for the whole run [copy batch pos ...]; axes of size 1 stand for all. None:
           nothing is put
    where: the places, [copy batch pos], or [copy batch pos head] where there are heads, [copy batch pos
           neuron] for single neurons; None: everywhere.
           Keys and values with as many heads as there are queries are put for these query heads alone
    held:  all other places of the site are held at what they are in the run that is edited
    """

    site: str
    layer: int
    value: Float[Tensor, "..."] | None = None
    where: Bool[Tensor, "..."] | None = None
    held: bool = False

    @property
    def copies(self) -> int:
        """For how many copies of the run it says something different."""
        return max(len(part) for part in (self.value, self.where, torch.zeros(1)) if part is not None)

    @property
    def heads(self) -> int:
        """How many heads it tells apart; 0 where it says nothing of heads."""
        parts = (each for each in (self.value, self.where) if each is not None and each.ndim > 3)
        return max((each.shape[3] for each in parts), default=0)

    @property
    def looks_ahead(self) -> bool:
        """Whether it is a pattern in which a query attends to keys after it, which no causal model has."""
        if self.site != "pattern" or self.value is None:
            return False
        rows = self.value.movedim(3, 2)  # [copy batch head query key]
        return bool(rows.expand(*rows.shape[:3], rows.shape[-1], -1).triu(1).any())

    def of_copy(self, copy: int) -> "Put":
        """The edit of one of the copies."""
        one = lambda each: each[copy : copy + 1] if each is not None and len(each) > 1 else each
        return replace(self, value=one(self.value), where=one(self.where))

    def of_rows(self, rows: Int[Tensor, "row"]) -> "Put":
        """The edit for some of the prompts."""
        several = lambda each: each is not None and each.ndim > 1 and each.shape[1] > 1
        some = lambda each: each[:, rows] if several(each) else each
        return replace(self, value=some(self.value), where=some(self.where))

    def into(self, x: Tensor, kept: Tensor, copies: slice = slice(0, 1)) -> Tensor:
        """x with the edit made.

        x:    [copy batch later ...], what some copies have at the site at the last positions
        kept: what the run itself has there, for `held`; copies: which copies these are
        """
        later = x.shape[2]
        if self.held:
            x = kept[:, kept.shape[1] - later :].to(x).expand_as(x).contiguous()
        if self.value is None:
            return x
        value = _part(self.value, copies, later)
        if self.where is None:
            return value.to(x).expand_as(x).contiguous()
        where = _part(self.where, copies, later).to(x.device)
        return torch.where(where[(...,) + (None,) * (x.ndim - where.ndim)], value.to(x), x)


def norm_over_heads(model: "TransformerBridge", layer: int) -> bool:
    """Whether the queries of all heads go through one norm together (OLMo 2), and so the keys."""
    norm = getattr(model.blocks[layer].attn, "q_norm", None)
    weight = getattr(norm, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1 and len(weight) != model.cfg.d_head


def hook_of(model: "TransformerBridge", site: str, layer: int) -> str:
    """The hook that holds a site. A norm over all heads comes before queries and keys are told apart."""
    if site in ("q", "k") and norm_over_heads(model, layer):
        return f"blocks.{layer}.attn.{site}_norm.hook_out"
    return f"blocks.{layer}.{SITES[site]}"


def copies_of(edits: Sequence[Put]) -> int:
    """For how many copies of a run some edits say something different."""
    return max((put.copies for put in edits), default=1)


def check_edits(model: "TransformerBridge", edits: Sequence[Put]) -> None:
    """Refuse sites and layers that are not there.

    Also keys or values of single query heads together with other edits of the same attention.
    """
    kv_heads = key_value_heads(model)
    for put in edits:
        one_of("site", put.site, SITES)
        check_layer(model, put.layer)  # the end of the stream is not among them
        mates = [other for other in edits if other.layer == put.layer and other.site in WITH_HEADS]
        if put.site in ("k", "v") and put.heads > kv_heads and len(mates) > 1:
            raise ValueError(
                f"In layer {put.layer} keys or values are put for single query heads, and something else in "
                "the same attention too. Ask for one of the two at a time."
            )


def flowing(edits: Sequence[Put]) -> torch.set_grad_enabled:
    """Gradients flow inside where a value that is put asks for one, and else do not."""
    asked = any(put.value is not None and put.value.requires_grad for put in edits)
    return torch.set_grad_enabled(asked and torch.is_grad_enabled())


def _part(each: Tensor, copies: slice, later: int) -> Tensor:
    """The rows of some copies and the last positions, of something that has either or stands for all."""
    each = each[copies] if len(each) > 1 else each
    return each if each.shape[2] == 1 else each[:, :, each.shape[2] - later :]


@runtime_checkable
class Run(Protocol):
    """A run of `model` on `tokens`, kept so that changed copies of it can be asked for."""

    model: "TransformerBridge"
    batch: Batch  # its prompts, and where each ends
    tokens: Int[Tensor, "batch pos"]
    edits: tuple[Put, ...]  # what was made for good in it
    elsewhere: bool  # whether it starts from another stream than the tokens' own embeddings

    def at(self, site: str, layer: int) -> Float[Tensor, "batch pos ..."]:
        """What the run has at a site: [batch pos d_model], or [batch pos head ...].

        "resid_pre" has one layer more, the end.
        """
        ...

    def check_fresh(self) -> None:
        """Raise a `ValueError` where the model's weights were changed since the run was made."""
        ...

    def value(self, metric: Metric) -> Float[Tensor, "batch"]:
        """The metric of the run itself."""
        ...

    def edited(
        self, metric: Metric, edits: Sequence[Put], *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "copy batch"]:
        """The metric of changed copies of the run: as many as the edits tell apart.

        Gradients flow back to values that ask for one.
        dtype: another one for the matrix products, where the engine can; else a `ValueError`
        """
        ...

    def read(
        self, site: str, layers: Sequence[int], edits: Sequence[Put], places: Int[Tensor, "batch place"]
    ) -> dict[int, Float[Tensor, "copy batch place ..."]]:
        """What the changed copies have at a site of some layers, at some positions of each prompt."""
        ...

    def changed(self, edits: Sequence[Put] = (), *, embedded: Tensor | None = None) -> "Run":
        """The run with edits made for good, or from another embedding: a run of its own.

        edits: of one copy; embedded: [batch pos d_model]
        """
        ...

    def rows(self, chosen: "Chosen") -> "Run":
        """The run of some of its prompts, in any order and as often as you like; the memory is shared.

        What it holds is gathered only when it is asked for. A `ValueError` for a prompt that is not there
        """
        ...

    def logits(self, edits: Sequence[Put], last: int) -> Float[Tensor, "copy_batch last d_vocab"]:
        """Logits of the changed copies at the last positions, one copy after the other.

        Gradients flow back to the values.
        """
        ...

    def site_gradients(
        self, metric: Metric, site: str = "z", *, rule: str = "gradient"
    ) -> list[Float[Tensor, "batch pos head d_head"]]:
        """The gradient of the metrics' sum for what each layer's heads have at a site: "q", "k", "v" or "z".

        rule: one of `RULES`, how the gradient is taken back through gated MLPs
        """
        ...

    def reader_gradients(
        self, metric: Metric, *, rule: str = "gradient"
    ) -> list[Float[Tensor, "batch pos reader d_model"]]:
        """The gradient of the metrics' sum for what each reader finds in the stream, before its norm.

        In the order of layers: queries by head, keys, values (by key/value head), the MLP; last the logits.
        """
        ...


class Gathered(Sequence[Tensor]):
    """Some rows of each of several tensors, copied only when one is asked for."""

    def __init__(self, values: Sequence[Tensor] | Tensor, rows: Int[Tensor, "row"]):
        self.values, self.chosen = values, rows

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, number):
        return self.values[number][self.chosen]


Engine = TypeVar("Engine", bound="Kept")


class Kept:
    """What both engines keep of a run: its prompts, and which weights it was made with."""

    def __init__(self, batch: Batch):
        self.batch, self.model, self.tokens = batch, batch.model, batch.tokens
        self._weights = [*self.model.original_model.parameters()]
        self._made_with = _state(self._weights)

    def check_fresh(self) -> None:
        if _state(self._weights) != self._made_with:
            raise ValueError(
                "The weights of the model were changed since this run was made, so it is the run of another "
                "model now. Make it again: `ml.run_of(model, tokens)`."
            )

    def rows(self: Engine, chosen: "Chosen") -> Engine:
        self.check_fresh()
        count, batch = len(self.tokens), self.batch
        try:
            rows = torch.arange(count)[chosen].to(self.tokens.device)
        except (IndexError, TypeError) as error:
            raise ValueError(f"The run has prompts 0 to {count - 1}: {error}.") from None
        if rows.ndim != 1 or not len(rows):
            raise ValueError(f"Choose prompts 0 to {count - 1} of the run, one or more, not {chosen!r:.80}.")
        some, units = copy.copy(self), batch.units
        units = None if units is None else units[rows.to(units.device)]
        some.batch = replace(batch, tokens=batch.tokens[rows], ends=batch.ends[rows], units=units)
        some.tokens = some.batch.tokens
        some._gather(rows)
        return some

    def _gather(self, rows: Int[Tensor, "row"]) -> None:
        """Keep these rows of what an engine keeps, and of the edits that were made for good."""
        raise NotImplementedError

    def check_layer(self, site: str, layer: int) -> None:
        """Raise a `ValueError` for a layer that has no such site; the stream has one more, the end."""
        last = self.model.cfg.n_layers - (site != "resid_pre")
        if not 0 <= layer <= last:
            raise ValueError(f"There is no {site} of layer {layer}: this model has it in layers 0 to {last}.")

    def check_places(self, places: Int[Tensor, "batch place"]) -> Int[Tensor, "batch place"]:
        """The positions, if all prompts have them; else a `ValueError`."""
        count = self.tokens.shape[1]
        if len(places) != len(self.tokens) or (
            places.numel() and not (places.min() >= 0 and places.max() < count)
        ):
            raise ValueError(
                f"places is {tuple(places.shape)}, from {places.min()} to {places.max()}: give positions 0 "
                f"to {count - 1} for each of the {len(self.tokens)} prompts."
            )
        return places.to(self.tokens.device)

    def check_slope(self, metric: Metric) -> None:
        """Raise a `ValueError` for a metric that has no gradient at all."""
        with gradients():
            logits = torch.zeros(*self.tokens.shape, self.model.cfg.d_vocab, device=self.tokens.device)
            if not metric(logits.requires_grad_()).requires_grad:
                raise ValueError(
                    "The metric has no gradient for the logits (a comparison, a rounding, `.detach()`?), so "
                    "nothing can be estimated from it. Use one such as `ml.logit_difference`."
                )

    def fitted(self, metric: Metric) -> Metric:
        """The metric for the prompts of the run, which must not be stale."""
        self.check_fresh()
        return fitted(metric, self.batch)


def _state(weights: Sequence[torch.nn.Parameter]) -> list[tuple[int, int]]:
    """Where weights lie, and how often they were written to."""
    return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in weights]


def slopes_of(total: Float[Tensor, ""], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a number for each tensor; zeros for those that it does not depend on."""
    if not total.requires_grad:
        return [torch.zeros_like(each) for each in tensors]
    return list(torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True))


class NotResumable(ValueError):
    """This model computes something that the fast engine does not know."""
