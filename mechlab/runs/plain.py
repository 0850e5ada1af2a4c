"""The plain engine: whole runs of the model, with a hook for each edit.

Slow, obvious, and right for any model. Nothing here knows how an architecture computes; TransformerLens does.
It is what the notebooks show, and what the fast engine is tested against.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import key_value_heads
from mechlab.metrics import Metric, per_prompt
from mechlab.runs.hooks import Hook, intervene
from mechlab.runs.run import SITES, Put, check_edits

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Plain:
    """One run of some prompts; what is asked of it is computed by running the model again."""

    def __init__(
        self,
        model: "TransformerBridge",
        tokens: Int[Tensor, "batch pos"],
        *,
        embedded: Float[Tensor, "batch pos d_model"] | None = None,
        edits: Sequence[Put] = (),
        of: "Plain | None" = None,
    ):
        """What every run starts from.

        embedded: a stream to start from
        edits:    made in every run, on the run `of`, whose embedding and edits stay
        """
        self.model, self.tokens = model, tokens
        self.elsewhere = embedded is not None or (of is not None and of.elsewhere)
        self.edits: tuple[Put, ...] = (*(of.edits if of else ()), *edits)
        self.begin: list[Hook] = [*of.begin] if of else []  # hooks of every run
        if embedded is not None:
            self.begin.append(("blocks.0.hook_resid_pre", lambda x, hook: embedded.to(x).expand_as(x)))
        self.begin += of.hooks(edits) if of else []
        self._seen: dict[str, list[Tensor]] = {}

    def at(self, site: str, layer: int) -> Float[Tensor, "batch pos ..."]:
        if site not in self._seen:
            self._seen[site] = self._watched(site)
        return self._seen[site][layer]

    def value(self, metric: Metric) -> Float[Tensor, "batch"]:
        with torch.no_grad(), self.running():
            return per_prompt(metric, self.model(self.tokens))

    @torch.no_grad()
    def edited(
        self, metric: Metric, edits: Sequence[Put], *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "copy batch"]:
        """One run of the model for each copy: the edits are hooks, the metric reads the logits."""
        if dtype is not None:
            raise ValueError(
                f"{dtype} needs the fast engine, and this model is run in full, in its own precision."
            )
        found = []
        for copy in range(max(put.copies for put in edits)):
            with self.running(self.hooks(edits, copy)):
                found.append(per_prompt(metric, self.model(self.tokens)))
        return torch.stack(found)

    @torch.no_grad()
    def read(
        self, site: str, layers: Sequence[int], edits: Sequence[Put], places: Int[Tensor, "batch place"]
    ) -> dict[int, Float[Tensor, "copy batch place ..."]]:
        rows = torch.arange(len(places), device=places.device)[:, None]
        copies = range(max(put.copies for put in edits))
        found = [self._watched(site, self.hooks(edits, copy)) for copy in copies]
        return {layer: torch.stack([each[layer][rows, places] for each in found]) for layer in layers}

    def changed(self, edits: Sequence[Put] = (), *, embedded: Tensor | None = None) -> "Plain":
        return Plain(self.model, self.tokens, embedded=embedded, edits=edits, of=self)

    def logits(self, edits: Sequence[Put], last: int) -> Float[Tensor, "copy_batch last d_vocab"]:
        found = []
        for copy in range(max([put.copies for put in edits], default=1)):
            with self.running(self.hooks(edits, copy)):
                found.append(self.model(self.tokens)[:, -last:])
        return torch.cat(found)

    def z_gradients(self, metric: Metric) -> list[Float[Tensor, "batch pos head d_head"]]:
        layers = range(self.model.cfg.n_layers)
        return self._gradients(metric, [f"blocks.{layer}.attn.hook_z" for layer in layers])

    def reader_gradients(self, metric: Metric) -> list[Float[Tensor, "batch pos reader d_model"]]:
        sites = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_resid_mid", "hook_resid_post")
        names = [f"blocks.{layer}.{site}" for layer in range(self.model.cfg.n_layers) for site in sites]
        with _split_inputs(self.model):
            found, slopes = self._gradients(metric, names), []
        for layer in range(0, len(found), len(sites)):
            q, k, v, middle, end = found[layer : layer + len(sites)]
            through_mlp = middle - end  # what of the stream's gradient goes through the MLP, not past it
            slopes += [q, k, v, through_mlp[:, :, None]]
        return [*slopes, found[-1][:, :, None]]

    def running(self, hooks: Sequence[Hook] = ()):
        """The model with the run's own hooks and these."""
        return intervene(self.model, [*self.begin, *hooks])

    def hooks(self, edits: Sequence[Put], copy: int = 0) -> list[Hook]:
        """The edits of one copy as hooks of the model."""
        hooks: list[Hook] = []
        check_edits([*self.edits, *edits], key_value_heads(self.model))
        for put in sorted(edits, key=lambda put: (put.layer, [*SITES].index(put.site))):
            if put.site in ("k", "v") and put.heads > key_value_heads(self.model):
                put = self._for_query_heads(put, hooks, copy)
            name = f"blocks.{put.layer}.{SITES[put.site]}"
            if put.layer == self.model.cfg.n_layers:  # the end of the stream
                name = f"blocks.{put.layer - 1}.hook_resid_post"
            hooks.append((name, self._writer(put, copy)))
        return hooks

    def _writer(self, put: Put, copy: int) -> Callable[..., Tensor]:
        """The hook function that makes one edit."""
        kept = self.at(put.site, put.layer) if put.held else torch.empty(0)

        def write(x: Tensor, hook) -> Tensor:
            ours = _axes(put.site, x)
            return _axes(put.site, put.into(ours[None], kept, slice(copy, copy + 1))[0])

        return write

    def _for_query_heads(self, put: Put, before: Sequence[Hook], copy: int) -> Put:
        """New keys or values for some of the query heads that share them, as an edit of z.

        It is what these heads then hand on. The model is run with the keys or values of the whole group
        changed, head by head of a group; z of the head in question is what is wanted.
        """
        shared = self.model.cfg.n_heads // key_value_heads(self.model)
        one = put.of_copy(copy)
        value, where = torch.as_tensor(one.value)[0], torch.ones(1, 1, 1, 1, dtype=torch.bool)
        if one.where is not None:
            where = one.where if one.where.ndim == 4 else one.where[..., None]
        where = where.to(value.device).expand(1, *self.tokens.shape, self.model.cfg.n_heads)[0]
        z = []
        for member in range(shared):
            new, there = (each[None, :, :, member::shared] for each in (value, where))
            hooks = [*before, *self.hooks([Put(put.site, put.layer, new, there, put.held)])]
            z.append(self._watched("z", hooks)[put.layer][:, :, member::shared])
        found = torch.stack(z, dim=3).flatten(2, 3)
        heads = (where.any(1, keepdim=True) | put.held).expand_as(where)
        return Put("z", put.layer, found[None], heads[None])

    def _watched(self, site: str, hooks: Sequence[Hook] = ()) -> list[Float[Tensor, "batch pos ..."]]:
        """What a run with these hooks has at a site, layer by layer."""
        layers = range(self.model.cfg.n_layers)
        names = [f"blocks.{layer}.{SITES[site]}" for layer in layers]
        names += [f"blocks.{layers[-1]}.hook_resid_post"] if site == "resid_pre" else []
        seen: dict[str, Tensor] = {}
        with torch.no_grad(), self.running([*hooks, *_look(names, seen)]):
            self.model(self.tokens)
        return [_axes(site, seen[name]) for name in names]

    def _gradients(self, metric: Metric, names: Sequence[str]) -> list[Tensor]:
        kept: dict[str, Tensor] = {}
        start = lambda x, hook: x.detach().requires_grad_()
        with torch.enable_grad(), self.running([("blocks.0.hook_resid_pre", start), *_look(names, kept)]):
            total = per_prompt(metric, self.model(self.tokens)).sum()
        return list(torch.autograd.grad(total, [kept[name] for name in names]))


def _look(names: Sequence[str], seen: dict[str, Tensor]) -> list[Hook]:
    """Hooks that change nothing and put what they see into `seen`, by the name of the hook."""

    def look(x: Tensor, hook, name: str) -> Tensor:
        seen[name] = x
        return x

    return [(name, partial(look, name=name)) for name in names]


def _axes(site: str, x: Tensor) -> Tensor:
    """From the hook's axes to [batch pos head ...], and back: a pattern has its heads before its queries."""
    return x.transpose(1, 2) if site == "pattern" else x


@contextmanager
def _split_inputs(model: "TransformerBridge"):
    """The model with a stream of its own for the queries, keys and values of each head."""
    before = model.cfg.use_split_qkv_input
    model.set_use_split_qkv_input(True)
    try:
        yield
    finally:
        model.set_use_split_qkv_input(before)
