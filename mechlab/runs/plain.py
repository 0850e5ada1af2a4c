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

from mechlab.arguments import gradients, key_value_heads, mlp_width, one_of
from mechlab.loading.limits import is_ignored
from mechlab.metrics import Metric, per_prompt
from mechlab.runs.hooks import Hook, intervene
from mechlab.runs.matrices import activation_between, by_half_rule, is_parallel, norms_of, slope_before
from mechlab.runs.run import (
    RULES,
    SITES,
    Gathered,
    Kept,
    Put,
    check_edits,
    copies_of,
    flowing,
    hook_of,
    slopes_of,
)
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
        self._seen: dict[str, Sequence[Tensor]] = {}
        check_edits(self.model, self.edits)

    def at(self, site: str, layer: int) -> Float[Tensor, "batch pos ..."]:
        one_of("site", site, SITES)
        self.check_layer(site, layer)
        if site not in self._seen:
            self.check_fresh()
            self._seen[site] = self._watched(site)
        return self._seen[site][layer]

    def value(self, metric: Metric) -> Float[Tensor, "batch"]:
        metric = self.fitted(metric)
        with torch.no_grad(), self.running():
            return per_prompt(metric, self.model(self.tokens))

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
            with flowing(edits), self.running(self.hooks(edits, copy)):
                found.append(per_prompt(metric, self.model(self.tokens)))
        return torch.stack(found)

    @torch.no_grad()
    def read(
        self, site: str, layers: Sequence[int], edits: Sequence[Put], places: Int[Tensor, "batch place"]
    ) -> dict[int, Float[Tensor, "copy batch place ..."]]:
        self.check_fresh()
        for layer in layers:
            self.check_layer(site, layer)
        places = self.check_places(places)
        rows = torch.arange(len(places), device=places.device)[:, None]
        found = [self._watched(site, edits, copy) for copy in range(copies_of(edits))]
        return {layer: torch.stack([each[layer][rows, places] for each in found]) for layer in layers}

    def changed(self, edits: Sequence[Put] = (), *, embedded: Tensor | None = None) -> "Plain":
        self.check_fresh()
        return Plain(self.batch, embedded=embedded, edits=edits, of=self)

    def _gather(self, rows: Int[Tensor, "row"]) -> None:
        self.made = [(put.of_rows(rows), run.rows(rows)) for put, run in self.made]
        self.edits = tuple(put for put, _ in self.made)
        if self.embedded is not None and len(self.embedded) > 1:
            self.embedded = self.embedded[rows]
        self._seen = {site: Gathered(values, rows) for site, values in self._seen.items()}

    def logits(self, edits: Sequence[Put], last: int) -> Float[Tensor, "copy_batch last d_vocab"]:
        self.check_fresh()
        if not 1 <= last <= self.tokens.shape[1]:
            raise ValueError(f"last is {last}; the prompts have {self.tokens.shape[1]} positions.")
        found = []
        for copy in range(copies_of(edits)):
            with self.running(self.hooks(edits, copy)):
                found.append(self.model(self.tokens)[:, -last:])
        return torch.cat(found)

    def site_gradients(
        self, metric: Metric, site: str = "z", *, rule: str = "gradient"
    ) -> list[Float[Tensor, "batch pos head d_head"]]:
        one_of("site", site, ("q", "k", "v", "z"))
        names = [hook_of(self.model, site, layer) for layer in range(self.model.cfg.n_layers)]
        return [self._axes(site, each) for each in self._gradients(metric, names, rule)]

    def reader_gradients(
        self, metric: Metric, *, rule: str = "gradient"
    ) -> list[Float[Tensor, "batch pos reader d_model"]]:
        """From the gradients for queries, keys, values and the MLP's input, back through norm and matrix."""
        layers, sites = (
            range(self.model.cfg.n_layers),
            ("attn.hook_q", "attn.hook_k", "attn.hook_v", "mlp.hook_in"),
        )
        names = [f"blocks.{layer}.{site}" for layer in layers for site in sites]
        end = f"blocks.{layers[-1]}.hook_resid_post"
        *found, end = self._gradients(metric, [*names, end], rule, unedited=True)
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
                slopes.append(slope_before(norms.before_attention, entry, slope))
            middle = entry if is_parallel(self.model, layer) else entry + self.at("attn_out", layer)
            slopes.append(slope_before(norms.before_mlp, middle, mlp[:, :, None]))
        return [*slopes, end[:, :, None]]

    def running(self, hooks: Sequence[Hook] | None = None):
        """The model with the run's own edits, or with these hooks, and the stream that it starts from."""
        begin: list[Hook] = []
        if self.embedded is not None:
            start = self.embedded
            begin = [("blocks.0.hook_resid_pre", lambda x, hook: start.to(x).expand_as(x))]
        return intervene(self.model, [*begin, *(self.hooks() if hooks is None else hooks)])

    def hooks(self, edits: Sequence[Put] = (), copy: int = 0, *, until: Put | None = None) -> list[Hook]:
        """The run's own edits and those of one copy as hooks of the model, first layers first.

        until: leave out this one and those that come after it
        """
        check_edits(self.model, [*self.edits, *edits])
        every = [(put, run, 0) for put, run in self.made] + [(put, self, copy) for put in edits]
        hooks: list[Hook] = []
        gathered: dict[int, list[Callable[[Tensor], Tensor]]] = {}
        for put, run, number in sorted(every, key=lambda each: (each[0].layer, [*SITES].index(each[0].site))):
            if put is until:
                break
            if put.site == "pattern" and self._through_others(put):
                patterns = gathered.setdefault(put.layer, [])
                hooks += [] if patterns else self._through_z(put.layer, patterns, hooks)
                patterns.append(self._edit(put, run, number))
                continue
            if self._through_others(put):
                put, number = self._for_query_heads(put, run, hooks, number), 0
            hooks.append((hook_of(self.model, put.site, put.layer), self._writer(put, run, number)))
        return hooks

    def _edit(self, put: Put, run: "Plain", copy: int) -> Callable[[Tensor], Tensor]:
        """What one edit makes of an activation, with the axes of its hook; `run` has what is held."""
        kept = run.at(put.site, put.layer) if put.held else torch.empty(0)

        def edit(x: Tensor) -> Tensor:
            ours = put.into(self._axes(put.site, x)[None], kept, slice(copy, copy + 1))[0]
            return ours.transpose(1, 2) if put.site == "pattern" else ours.reshape(x.shape)

        return edit

    def _writer(self, put: Put, run: "Plain", copy: int) -> Callable[..., Tensor]:
        """The hook function that makes one edit."""
        edit = self._edit(put, run, copy)
        return lambda x, hook: edit(x)

    def _through_z(
        self, layer: int, edits: Sequence[Callable[[Tensor], Tensor]], before: Sequence[Hook]
    ) -> list[Hook]:
        """A pattern edited where the model does not use what it is given: by what the heads then gather."""
        pattern = self._look_at("pattern", before)[layer].transpose(1, 2)
        seen: dict[str, Tensor] = {}

        def gather(z: Float[Tensor, "batch pos head d_head"], hook) -> Float[Tensor, "batch pos head d_head"]:
            edited, v = pattern, seen[hook_of(self.model, "v", layer)]
            for edit in edits:
                edited = edit(edited)
            v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
            return einsum(edited, v, "batch head query pos, batch pos head d_head -> batch query head d_head")

        return [*_look([hook_of(self.model, "v", layer)], seen), (hook_of(self.model, "z", layer), gather)]

    def _for_query_heads(self, put: Put, run: "Plain", before: Sequence[Hook], copy: int) -> Put:
        """New keys or values for some of the query heads that share them, as an edit of their z."""
        z = self._of_query_heads("z", put, run, before, copy)
        one = put.of_copy(copy).where
        where = torch.ones(1, 1, 1, 1, dtype=torch.bool) if one is None else one
        where = where if where.ndim == 4 else where[..., None]
        heads = (where.any(2, keepdim=True) | put.held).expand(1, *z.shape[:3])
        return Put("z", put.layer, z[None], heads.to(z.device))

    def _of_query_heads(
        self, site: str, put: Put, run: "Plain", before: Sequence[Hook], copy: int
    ) -> Float[Tensor, "batch pos head ..."]:
        """What heads have at a site when keys or values are put for some query heads alone.

        The model is run with the keys or values of the whole group changed, once for each member of a group;
        what that member then has is what is wanted.
        """
        shared = self.model.cfg.n_heads // key_value_heads(self.model)
        one, found = put.of_copy(copy), []
        for member in range(shared):
            mine = lambda each, member=member: each[..., member::shared] if each.shape[-1] > 1 else each
            value = torch.as_tensor(one.value)[:, :, :, member::shared]
            where = one.where if one.where is None or one.where.ndim < 4 else mine(one.where)
            group = replace(put, value=value, where=where)
            hooks = [*before, (hook_of(self.model, put.site, put.layer), self._writer(group, run, 0))]
            found.append(self._look_at(site, hooks)[put.layer][:, :, member::shared])
        return torch.stack(found, dim=3).flatten(2, 3)

    def _watched(
        self, site: str, edits: Sequence[Put] = (), copy: int = 0
    ) -> list[Float[Tensor, "batch pos ..."]]:
        """What a run with these edits has at a site, layer by layer."""
        seen = self._look_at(site, self.hooks(edits, copy))
        for put, run, number in [
            *((put, run, 0) for put, run in self.made),
            *((put, self, copy) for put in edits),
        ]:
            if put.site == site and self._through_others(put):  # not to be seen where it is put
                x = seen[put.layer][None]
                x = x.repeat_interleave(max(1, put.heads // x.shape[3]), dim=3)
                kept = run.at(site, put.layer) if put.held else x[0]
                kept = kept.repeat_interleave(x.shape[3] // kept.shape[2], dim=2)
                seen[put.layer] = put.into(x, kept, slice(number, number + 1))[0]
            elif (put.site, site) == ("k", "pattern") and self._through_others(put):
                before = self.hooks(edits, copy, until=put)
                seen[put.layer] = self._of_query_heads(site, put, run, before, number)
        return seen

    def _through_others(self, put: Put) -> bool:
        """Whether an edit is made at another site than it says."""
        if put.site in ("k", "v"):
            return put.heads > key_value_heads(self.model)
        return put.site == "pattern" and is_ignored(self.model, hook_of(self.model, "pattern", put.layer))

    def _look_at(self, site: str, hooks: Sequence[Hook]) -> list[Float[Tensor, "batch pos ..."]]:
        """What the model has at a site with some hooks, layer by layer."""
        layers = range(self.model.cfg.n_layers)
        names = [hook_of(self.model, site, layer) for layer in layers]
        names += [f"blocks.{layers[-1]}.hook_resid_post"] if site == "resid_pre" else []
        seen: dict[str, Tensor] = {}
        with torch.no_grad(), self.running([*hooks, *_look(names, seen)]):
            self.model(self.tokens)
        return [self._axes(site, seen[name]) for name in names]

    def _axes(self, site: str, x: Tensor) -> Float[Tensor, "batch pos ..."]:
        """From a hook's axes to [batch pos head ...]: a pattern has its heads before its queries."""
        if site in ("q", "k") and x.ndim == 3:  # heads side by side
            return x.unflatten(-1, (-1, self.model.cfg.d_head))
        return x.transpose(1, 2) if site == "pattern" else x

    def _half_rule(self) -> list[Hook]:
        """Hooks that leave values as they are and take gradients through gated MLPs by the half rule."""
        mlp_width(self.model)  # refuses MLPs whose two factors no hook tells apart
        hooks: list[Hook] = []
        for layer, block in enumerate(self.model.blocks):
            if getattr(block.mlp, "W_gate", None) is None:
                continue
            gate, up, after = (f"blocks.{layer}.mlp.hook_{site}" for site in ("pre", "pre_linear", "post"))
            seen: dict[str, Tensor] = {}

            def halved(x: Tensor, hook, seen=seen, gate=gate, up=up) -> Tensor:
                factors = seen[gate], seen[up]
                return by_half_rule(x, *factors, activation_between(factors[0], x, factors[1]))

            hooks += [*_look([gate, up], seen), (after, halved)]
        return hooks

    def _gradients(
        self, metric: Metric, names: Sequence[str], rule: str, *, unedited: bool = False
    ) -> list[Tensor]:
        """The gradient of the metrics' sum for what some hooks see.

        unedited: before the run's own edits
        """
        one_of("rule", rule, RULES)
        if any(self._through_others(put) for put in self.edits):
            raise ValueError(
                "The plain engine has no gradients past an edit of keys or values of single query heads, or "
                "of patterns that this model does not take from a hook."
            )
        metric, kept = self.fitted(metric), {}
        start = ("blocks.0.hook_resid_pre", lambda x, hook: x.detach().clone().requires_grad_())
        look = _look(names, kept, apart=True)
        ruled = self._half_rule() if rule == "half" else []
        hooks = [start, *ruled, *look, *self.hooks()] if unedited else [start, *ruled, *self.hooks(), *look]
        with gradients(), self.running(hooks):
            total = per_prompt(metric, self.model(self.tokens)).sum()
            if not total.requires_grad:
                self.check_slope(metric)
            return slopes_of(total, [kept[name] for name in names])


def _look(names: Sequence[str], seen: dict[str, Tensor], *, apart: bool = False) -> list[Hook]:
    """Hooks that change nothing and put what they see into `seen`, by the name of the hook.

    apart: what goes on from here is a copy, so that a gradient for it is of this place alone
    """

    def look(x: Tensor, hook, name: str) -> Tensor:
        seen[name] = x
        if apart:  # also where an edit has cut it off from the stream before
            x = seen[name] = x.clone()
            x.requires_grad_(True)
        return x

    return [(name, partial(look, name=name)) for name in names]
