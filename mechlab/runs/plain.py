"""The plain engine: whole runs of the model, with a hook for each edit.

Slow, obvious, and right for any model. Nothing here knows how an architecture computes; TransformerLens does.
It is what the notebooks show, and what the fast engine is tested against.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import key_value_heads, one_of
from mechlab.metrics import Metric, per_prompt
from mechlab.runs.hooks import Hook, intervene, is_ignored
from mechlab.runs.matrices import is_parallel, norms_of, slope_before
from mechlab.runs.run import SITES, Kept, Put, check_edits, copies_of, gradients
from mechlab.tokens import Batch


class Plain(Kept):
    """One run of some prompts; what is asked of it is computed by running the model again."""

    def __init__(
        self,
        batch: Batch,
        *,
        embedded: Float[Tensor, "#batch pos d_model"] | None = None,
        edits: Sequence[Put] = (),
        of: "Plain | None" = None,
    ):
        """What every run starts from.

        embedded: a stream to start from; edits come after it
        edits:    made in every run, on the run `of`, whose embedding and edits stay
        """
        super().__init__(batch)
        self.embedded = of.embedded if of is not None and embedded is None else embedded
        self.elsewhere = self.embedded is not None
        # Each edit with the run whose values are held by it.
        self.made: list[tuple[Put, Plain]] = [*of.made, *((put, of) for put in edits)] if of else []
        self.edits: tuple[Put, ...] = tuple(put for put, _ in self.made)
        self._seen: dict[str, list[Tensor]] = {}
        check_edits(self.model, self.edits)

    def at(self, site: str, layer: int) -> Float[Tensor, "batch pos ..."]:
        one_of("site", site, SITES)
        if site not in self._seen:
            self.check_fresh()
            self._seen[site] = self._watched(site)
        return self._seen[site][layer]

    def value(self, metric: Metric) -> Float[Tensor, "batch"]:
        metric = self.fitted(metric)
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
        metric, found = self.fitted(metric), []
        for copy in range(copies_of(edits)):
            with self.running(self.hooks(edits, copy)):
                found.append(per_prompt(metric, self.model(self.tokens)))
        return torch.stack(found)

    @torch.no_grad()
    def read(
        self, site: str, layers: Sequence[int], edits: Sequence[Put], places: Int[Tensor, "batch place"]
    ) -> dict[int, Float[Tensor, "copy batch place ..."]]:
        rows = torch.arange(len(places), device=places.device)[:, None]
        found = [self._watched(site, edits, copy) for copy in range(copies_of(edits))]
        return {layer: torch.stack([each[layer][rows, places] for each in found]) for layer in layers}

    def changed(self, edits: Sequence[Put] = (), *, embedded: Tensor | None = None) -> "Plain":
        self.check_fresh()
        return Plain(self.batch, embedded=embedded, edits=edits, of=self)

    def logits(self, edits: Sequence[Put], last: int) -> Float[Tensor, "copy_batch last d_vocab"]:
        self.check_fresh()
        if not 1 <= last <= self.tokens.shape[1]:
            raise ValueError(f"last is {last}; the prompts have {self.tokens.shape[1]} positions.")
        found = []
        for copy in range(copies_of(edits)):
            with self.running(self.hooks(edits, copy)):
                found.append(self.model(self.tokens)[:, -last:])
        return torch.cat(found)

    def z_gradients(self, metric: Metric) -> list[Float[Tensor, "batch pos head d_head"]]:
        layers = range(self.model.cfg.n_layers)
        return self._gradients(metric, [f"blocks.{layer}.attn.hook_z" for layer in layers])

    def reader_gradients(self, metric: Metric) -> list[Float[Tensor, "batch pos reader d_model"]]:
        """From the gradients for queries, keys, values and the MLP's input, back through norm and matrix."""
        layers, sites = (
            range(self.model.cfg.n_layers),
            ("attn.hook_q", "attn.hook_k", "attn.hook_v", "mlp.hook_in"),
        )
        names = [f"blocks.{layer}.{site}" for layer in layers for site in sites]
        end = f"blocks.{layers[-1]}.hook_resid_post"
        *found, end = self._gradients(metric, [*names, end], unedited=True)
        slopes = []
        for layer in layers:
            attn, norms, entry = (
                self.model.blocks[layer].attn,
                norms_of(self.model, layer),
                self.at("resid_pre", layer),
            )
            q, k, v, mlp = found[4 * layer : 4 * layer + 4]
            for slope, W in ((q, attn.W_Q), (k, attn.W_K), (v, attn.W_V)):
                slope = einsum(
                    slope, W, "batch pos head d_head, head d_model d_head -> batch pos head d_model"
                )
                slopes.append(slope_before(norms["before_attention"], entry, slope))
            middle = entry if is_parallel(self.model, layer) else entry + self.at("attn_out", layer)
            slopes.append(slope_before(norms["before_mlp"], middle, mlp[:, :, None]))
        return [*slopes, end[:, :, None]]

    def running(self, hooks: Sequence[Hook] | None = None):
        """The model with the run's own edits, or with these hooks, and the stream that it starts from."""
        begin: list[Hook] = []
        if self.embedded is not None:
            start = self.embedded
            begin = [("blocks.0.hook_resid_pre", lambda x, hook: start.to(x).expand_as(x))]
        return intervene(self.model, [*begin, *(self.hooks() if hooks is None else hooks)])

    def hooks(self, edits: Sequence[Put] = (), copy: int = 0) -> list[Hook]:
        """The run's own edits and those of one copy as hooks of the model, first layers first."""
        check_edits(self.model, [*self.edits, *edits])
        every = [(put, run, 0) for put, run in self.made] + [(put, self, copy) for put in edits]
        hooks: list[Hook] = []
        for put, run, number in sorted(every, key=lambda each: (each[0].layer, [*SITES].index(each[0].site))):
            if put.site in ("k", "v") and put.heads > key_value_heads(self.model):
                put, number = self._for_query_heads(put, run, hooks, number), 0
            hooks += self._hooks_of(put, run, number)
        return hooks

    def _hooks_of(self, put: Put, run: "Plain", copy: int) -> list[Hook]:
        """The hooks that make one edit; `run` has what is held."""
        kept, name = run.at(put.site, put.layer) if put.held else torch.empty(0), _name(put.site, put.layer)

        def edit(x: Tensor) -> Tensor:
            ours = _axes(put.site, x)
            return _axes(put.site, put.into(ours[None], kept, slice(copy, copy + 1))[0])

        if put.site == "pattern" and is_ignored(self.model, name):
            return self._through_z(put.layer, edit)
        return [(name, lambda x, hook: edit(x))]

    def _through_z(self, layer: int, edit: Callable[[Tensor], Tensor]) -> list[Hook]:
        """A pattern edited where the model does not use what it is given: by what the heads then gather."""
        seen: dict[str, Tensor] = {}
        names = [_name(site, layer) for site in ("v", "pattern")]

        def gather(z: Float[Tensor, "batch pos head d_head"], hook) -> Float[Tensor, "batch pos head d_head"]:
            v, pattern = (seen[name] for name in names)
            v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
            return einsum(
                edit(pattern), v, "batch head query pos, batch pos head d_head -> batch query head d_head"
            )

        return [*_look(names, seen), (_name("z", layer), gather)]

    def _for_query_heads(self, put: Put, run: "Plain", before: Sequence[Hook], copy: int) -> Put:
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
            group = self._hooks_of(replace(put, value=new, where=there), run, 0)
            z.append(self._look_at("z", [*before, *group])[put.layer][:, :, member::shared])
        found = torch.stack(z, dim=3).flatten(2, 3)
        heads = (where.any(1, keepdim=True) | put.held).expand_as(where)
        return Put("z", put.layer, found[None], heads[None])

    def _watched(
        self, site: str, edits: Sequence[Put] = (), copy: int = 0
    ) -> list[Float[Tensor, "batch pos ..."]]:
        """What a run with these edits has at a site, layer by layer."""
        hooks = self.hooks(edits, copy)
        if site != "pattern":
            return self._look_at(site, hooks)
        # Where an edited pattern goes through z, what the hook shows is the one before the edit.
        seen = self._look_at(site, hooks)
        for put, run, number in [(put, run, 0) for put, run in self.made] + [
            (put, self, copy) for put in edits
        ]:
            if put.site == site and is_ignored(self.model, _name(site, put.layer)):
                kept = run.at(site, put.layer) if put.held else torch.empty(0)
                seen[put.layer] = put.into(seen[put.layer][None], kept, slice(number, number + 1))[0]
        return seen

    def _look_at(self, site: str, hooks: Sequence[Hook]) -> list[Float[Tensor, "batch pos ..."]]:
        """What the model has at a site with some hooks, layer by layer."""
        layers = range(self.model.cfg.n_layers)
        names = [_name(site, layer) for layer in layers]
        names += [f"blocks.{layers[-1]}.hook_resid_post"] if site == "resid_pre" else []
        seen: dict[str, Tensor] = {}
        with torch.no_grad(), self.running([*hooks, *_look(names, seen)]):
            self.model(self.tokens)
        return [_axes(site, seen[name]) for name in names]

    def _gradients(self, metric: Metric, names: Sequence[str], *, unedited: bool = False) -> list[Tensor]:
        """The gradient of the metrics' sum for what some hooks see.

        unedited: before the run's own edits
        """
        metric, kept = self.fitted(metric), {}
        start = ("blocks.0.hook_resid_pre", lambda x, hook: x.detach().clone().requires_grad_())
        look = _look(names, kept)
        hooks = [start, *look, *self.hooks()] if unedited else [start, *self.hooks(), *look]
        with gradients(), self.running(hooks):
            total = per_prompt(metric, self.model(self.tokens)).sum()
            wanted = [kept[name] for name in names]
            return list(torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True))


def _name(site: str, layer: int) -> str:
    """The hook of a site."""
    return f"blocks.{layer}.{SITES[site]}"


def _look(names: Sequence[str], seen: dict[str, Tensor]) -> list[Hook]:
    """Hooks that change nothing and put what they see into `seen`, by the name of the hook."""

    def look(x: Tensor, hook, name: str) -> Tensor:
        seen[name] = x
        return x

    return [(name, partial(look, name=name)) for name in names]


def _axes(site: str, x: Tensor) -> Tensor:
    """From the hook's axes to [batch pos head ...], and back: a pattern has its heads before its queries."""
    return x.transpose(1, 2) if site == "pattern" else x
