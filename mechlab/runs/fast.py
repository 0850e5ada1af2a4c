"""The fast engine: a run taken up where it is changed, exactly.

An edit at layer L and position p leaves every earlier layer, and every earlier position, as it was. So the
stream is taken up at layer L, only positions p, p+1, ... are computed, they look back at the keys and values
of the first run, and only the logits that the metric reads are unembedded. Where heads are held they carry
nothing from place to place, and only the places that somebody reads are computed. Nothing is approximated:
the numbers are those of a full run (`plain.py`), for a fraction of the multiplications.

There is no list of architectures: what a model computes is put together from its parts (`matrices.py`), and
on setting up the result is compared with the model's own logits. A model that computes something else, such
as a mixture of experts, is refused (`NotResumable`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.arguments import gradients, one_of
from mechlab.metrics import Metric, PositionMetric, per_prompt
from mechlab.runs.caching import free_bytes
from mechlab.runs.matrices import Layer, Weights, reader_slopes
from mechlab.runs.places import first_difference
from mechlab.runs.run import (
    RULES,
    Gathered,
    Kept,
    NotResumable,
    Put,
    check_edits,
    copies_of,
    flowing,
    slopes_of,
)
from mechlab.tokens import Batch

ROWS = 2048  # on a CPU larger batches are no faster: the matrix products are already at their best
MOST_ROWS = 65_535  # of a batch, for the attention kernels of a GPU
OUT_OF_MEMORY = ("out of memory", "can't allocate", "alloc_failed")
STACKED, LISTS = ("resid_pre", "resid_mid", "z"), ("q", "k", "v", "queries", "keys")
ATTENTION, MLP = ("q", "k", "v", "pattern", "z", "attn_out"), ("post", "mlp_out")
# Told the site, the layer and what is there: [row pos ...], heads before positions for q, k and v.
Note = Callable[[str, int, Tensor], None]


class Fast(Kept):
    """One run of some prompts, kept so that changed copies can be taken up anywhere in it.

    resid_pre: [layer + 1, batch, pos, d_model], the stream on entering each layer, and at the end
    resid_mid: [layer, batch, pos, d_model], the stream with what attention wrote
    q, k, v:   one [batch, head, pos, d_head] a layer, as the hooks have them
    queries, keys: the first two as they are compared: after their norms, turned by their positions
    z:         [layer, batch, pos, head, d_head], what the heads hand to W_O
    """

    resid_pre: Tensor | Gathered
    resid_mid: Tensor | Gathered
    q: Sequence[Tensor]
    k: Sequence[Tensor]
    v: Sequence[Tensor]
    queries: Sequence[Tensor]
    keys: Sequence[Tensor]
    z: Tensor | Gathered

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        batch: Batch,
        *,
        embedded: Float[Tensor, "#batch pos d_model"] | None = None,
        like: "Fast | None" = None,
        of: "Fast | None" = None,
        edits: Sequence[Put] = (),
    ):
        """What a run starts from.

        embedded:  a stream to start from
        like:      a run of this model, of which the beginning is taken where it is the same
        of, edits: edits made for good in a run of these tokens, whose own edits and start stay
        """
        super().__init__(batch)
        like, tokens = of or like, batch.tokens
        # Each edit with the run whose values are held by it.
        self.made: list[tuple[Put, Fast]] = [*of.made, *((put, of) for put in edits)] if of else []
        self.edits: tuple[Put, ...] = tuple(put for put, _ in self.made)
        self.elsewhere = embedded is not None or (of is not None and of.elsewhere)
        self.before: dict[int, Tensor] = {}  # the stream on entering a layer before it was edited
        if like is not None and like.tokens.shape[1] >= tokens.shape[1]:
            self.weights = like.weights
        else:
            if self.model.W_E.dtype not in (torch.float32, torch.float64):
                precision = str(self.model.W_E.dtype).removeprefix("torch.")
                raise NotResumable(
                    f"In {precision} this model rounds at every step, and so must a run of it."
                )
            self.weights = Weights.of(self.model, tokens[:1])
            self._check_logits()
        if embedded is not None:
            self._keep(embedded.to(self.model.W_E).expand(len(tokens), -1, -1))
        elif of is not None:
            start = of.before.get(0, of.resid_pre[0])
            self._keep(start, of, self._begin(self.edits)[1])
        else:
            self._keep(self._embedded(), like, first_difference(self, like) if like else 0)

    def _embedded(self) -> Float[Tensor, "batch pos d_model"]:
        name = "blocks.0.hook_resid_pre"
        return self.model.run_with_cache(self.tokens, names_filter=name, stop_at_layer=1)[1][name]

    def _check_logits(self) -> None:
        """One prompt tells whether the formulas are right."""
        tokens, self.tokens = self.tokens, self.tokens[:1]
        self._keep(self._embedded())
        found, logits = self.weights.unembed(self.resid_pre[-1]), self.model(self.tokens)
        off = (found - logits).abs().max().item()
        if not off <= 1e-3 * max(1.0, logits.abs().max().item()):
            raise NotResumable(f"The fast engine gives other logits than this model: off by {off:.2g}.")
        self.tokens = tokens

    def _keep(
        self, stream: Float[Tensor, "batch pos d_model"], like: "Fast | None" = None, first: int = 0
    ) -> None:
        """Run from the embedding on and keep what is found on the way.

        Before position `first` all is as in `like`.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in (*STACKED, *LISTS)}
        edited = {put.layer for put in self.edits if put.site == "resid_pre"}

        def note(site: str, layer: int, value: Tensor) -> None:
            if site in found:
                found[site].append(value)
            elif site == "resid_pre read" and layer in edited:
                kept = like.before.get(layer, like.resid_pre[layer]) if like is not None else value
                self.before[layer] = torch.cat([kept[:, :first], value], 1)

        first = min(first, stream.shape[1] - 1)  # one position at least, to join with those before
        found["resid_pre"].append(self._run_on(0, first, stream=stream[:, first:], past=like, note=note))
        for name, values in found.items():
            if first:
                axis = 2 if name in LISTS else 1
                kept = (each.narrow(axis, 0, first) for each in getattr(like, name))
                pairs = zip(kept, values, strict=True)
                values = [
                    torch.cat([_shared(old, new) if name in LISTS else old, new], axis) for old, new in pairs
                ]
            setattr(self, name, values if name in LISTS else torch.stack(values))

    # What the protocol asks for

    def at(self, site: str, layer: int) -> Float[Tensor, "batch pos ..."]:
        self.check_layer(site, layer)
        if site in STACKED:
            return getattr(self, site)[layer]
        if site == "pattern":
            pattern = self.weights.attends[layer].pattern(self.queries[layer], self.keys[layer])
            return self._as_made(site, layer, pattern)
        if site == "post":
            W, reads = self.weights, self.resid_pre if self.weights.parallel else self.resid_mid
            return self._as_made(site, layer, W.neurons(W.layers[layer], W.mlp_in(layer, reads[layer])))
        if site == "attn_out":
            return self.resid_mid[layer] - self.resid_pre[layer]
        if site == "mlp_out":
            return self.before.get(layer + 1, self.resid_pre[layer + 1]) - self.resid_mid[layer]
        one_of("site", site, ("resid_pre", *ATTENTION, *MLP))
        return getattr(self, site)[layer].transpose(1, 2)

    def _as_made(self, site: str, layer: int, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """What is not kept but computed again, with the edits that were made for good."""
        for put, run in self.made:
            if (put.site, put.layer) == (site, layer):
                x = put.into(x[None], run.at(site, layer) if put.held else x)[0]
        return x

    @torch.no_grad()
    def value(self, metric: Metric) -> Float[Tensor, "batch"]:
        return self._metric(self.fitted(metric), self.resid_pre[-1][None], 0)[0]

    def edited(
        self, metric: Metric, edits: Sequence[Put], *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "copy batch"]:
        check_edits(self.model, [*self.edits, *edits])
        with flowing(edits):
            return self._edited(self.fitted(metric), edits, dtype)

    def _edited(
        self, metric: Metric, edits: Sequence[Put], dtype: torch.dtype | None
    ) -> Float[Tensor, "copy batch"]:
        copies, count = copies_of(edits), self.tokens.shape[1]
        start, first = self._begin(edits)
        if first >= count:  # nothing is touched
            return self.value(metric).expand(copies, -1)
        if self._held(edits, start, len(self.weights.layers)):
            return self._held_metric(metric, edits)
        ends = self._ends(metric, first)
        read = 0 if ends is None else int(ends.min()) - first

        def some(copies: slice) -> Float[Tensor, "copy batch"]:
            end = self._run_on(start, first, edits, copies, read=read, dtype=dtype)
            return self._metric(metric, end.unflatten(0, (-1, len(self.tokens))), first + read)

        return self._in_batches(some, copies, first, metric)

    @torch.no_grad()
    def read(
        self, site: str, layers: Sequence[int], edits: Sequence[Put], places: Int[Tensor, "batch place"]
    ) -> dict[int, Float[Tensor, "copy batch place ..."]]:
        self.check_fresh()
        check_edits(self.model, [*self.edits, *edits])
        for layer in layers:
            self.check_layer(site, layer)
        places = self.check_places(places)
        start, _ = self._begin(edits)
        if site in ("q", "k", "v") and self._held(edits, start, max(layers)):
            streams = self._held_streams(edits, {*layers}, places)
            return {layer: self._heads_at(site, layer, streams[layer], places) for layer in layers}
        rows = torch.arange(len(places), device=places.device)[:, None]
        if site == "pattern" and {(put.site, put.layer) for put in edits} <= {("q", *layers), ("k", *layers)}:
            return {layer: self._pattern(layer, edits)[:, rows, places] for layer in layers}
        copies = range(copies_of(edits))
        runs = [self.changed([put.of_copy(copy) for put in edits]) for copy in copies]
        return {layer: torch.stack([run.at(site, layer)[rows, places] for run in runs]) for layer in layers}

    def changed(self, edits: Sequence[Put] = (), *, embedded: Tensor | None = None) -> "Fast":
        self.check_fresh()
        check_edits(self.model, [*self.edits, *edits])
        return Fast(self.batch, embedded=embedded, of=self, edits=edits)

    def _gather(self, rows: Int[Tensor, "row"]) -> None:
        self.made = [(put.of_rows(rows), run.rows(rows)) for put, run in self.made]
        self.edits = tuple(put for put, _ in self.made)
        self.before = {layer: stream[rows] for layer, stream in self.before.items()}
        for name in (*STACKED, *LISTS):
            setattr(self, name, Gathered(getattr(self, name), rows))

    def logits(self, edits: Sequence[Put], last: int) -> Float[Tensor, "copy_batch last d_vocab"]:
        self.check_fresh()
        check_edits(self.model, [*self.edits, *edits])
        count = self.tokens.shape[1]
        if not 1 <= last <= count:
            raise ValueError(f"last is {last}; the prompts have {count} positions.")
        start, first = self._begin(edits)
        copies, first = slice(0, copies_of(edits)), min(first, count - last)
        return self.weights.unembed(self._run_on(start, first, edits, copies, read=count - last - first))

    def site_gradients(
        self, metric: Metric, site: str = "z", *, rule: str = "gradient"
    ) -> list[Float[Tensor, "batch pos head d_head"]]:
        one_of("site", site, ("q", "k", "v", "z"))
        found = self._gradients(metric, (site,), rule)[site]
        return found if site == "z" else [each.transpose(1, 2) for each in found]

    def reader_gradients(
        self, metric: Metric, *, rule: str = "gradient"
    ) -> list[Float[Tensor, "batch pos reader d_model"]]:
        found = self._gradients(metric, ("q read", "k read", "v read", "mlp in"), rule)
        slopes, W = [], self.weights
        for number, layer in enumerate(W.layers):
            streams = self.resid_pre[number], self.resid_pre[number] if W.parallel else self.resid_mid[number]
            heads = [(found[f"{site} read"][number], getattr(layer, site.upper())[0]) for site in "qkv"]
            slopes += reader_slopes(layer, streams, heads, found["mlp in"][number])
        return [*slopes, found["end"][0][:, :, None]]

    # How it is done

    def _run_on(
        self,
        start: int,
        first: int,
        edits: Sequence[Put] = (),
        copies: slice = slice(0, 1),
        *,
        read: int = 0,
        dtype: torch.dtype | None = None,
        stream: Float[Tensor, "row later d_model"] | None = None,
        past: "Fast | None" = None,
        note: Note | None = None,
    ) -> Float[Tensor, "row its_later d_model"]:
        """The stream at the end of some copies of the run, at positions `first` + `read` and later.

        Gradients flow back. Until an edit touches a copy, all that it has is the run's own and is not
        computed again. In the last layer nobody reads other positions than those of the result, so only these
        are computed.

        stream: on entering the first layer (default: the run's own); past: whose keys and values are looked
                back at
        note:   is told what is found on the way
        """
        copy, live = _Copies(self, edits, copies, past or self, note, dtype), stream is not None
        stream = copy.kept(self.resid_pre[start][:, first:]) if stream is None else stream
        for layer in range(start, len(self.weights.layers)):
            late = first + read if layer == len(self.weights.layers) - 1 else first
            live = live or copy.edits("resid_pre", layer)
            stream = copy.edit("resid_pre", layer, stream)
            entry, entered = stream[:, late - first :], live
            if live or copy.edits("attention", layer):
                stream, live = entry + copy.attention(layer, stream, first, late, live), True
            else:
                stream = copy.kept(self.resid_mid[layer][:, late:])
            if note:
                note("resid_mid", layer, stream)
            reads, changed = (entry, entered) if self.weights.parallel else (stream, live)
            if live or copy.edits("mlp", layer):
                stream, live = stream + copy.mlp(layer, reads, changed), True
            else:
                stream = copy.kept(self.resid_pre[layer + 1][:, late:])
        return stream

    def _begin(self, edits: Sequence[Put]) -> tuple[int, int]:
        """The first layer and the first position that some edits touch.

        (0, how many positions there are) if none is.
        """
        start, first = _touched(edits, self.tokens.shape[1])
        ahead = first < self.tokens.shape[1] and any(put.looks_ahead for put in (*self.edits, *edits))
        return start, 0 if ahead else first

    def _pattern(self, layer: int, edits: Sequence[Put]) -> Float[Tensor, "copy batch pos head key"]:
        """The attention of a layer in which queries or keys are edited, and nothing before them."""
        some = _Copies(self, edits, slice(0, copies_of(edits)), self, None, None)
        q, k = (some._heads(site, layer, None, 0, 0) for site in "qk")
        pattern = some.edit("pattern", layer, self.weights.attends[layer].pattern(q, k))
        return pattern.unflatten(0, (some.many, -1))

    def _gradients(self, metric: Metric, sites: Sequence[str], rule: str) -> dict[str, list[Tensor]]:
        """The gradient of the metrics' sum for what each layer computes, in the order of layers.

        "end": for the last stream.
        """
        one_of("rule", rule, RULES)
        self.check_fresh()
        ruled = copy.copy(self)
        ruled.weights = replace(self.weights, halved=rule == "half")
        kept: dict[str, list[Tensor]] = {site: [] for site in (*sites, "end")}

        def note(site: str, layer: int, value: Tensor) -> None:
            if site in kept:  # also where an edit has cut it off from the stream before
                kept[site].append(value if value.requires_grad else value.requires_grad_())

        with gradients():
            begin = self.before.get(0, self.resid_pre[0]).detach().clone().requires_grad_()
            note("end", len(self.weights.layers), ruled._run_on(0, 0, stream=begin, note=note))
            total = self._metric(self.fitted(metric), kept["end"][0][None], 0).sum()
            if not total.requires_grad:
                self.check_slope(self.fitted(metric))
            found = iter(slopes_of(total, [tensor for each in kept.values() for tensor in each]))
        return {site: [next(found) for _ in tensors] for site, tensors in kept.items()}

    # Reading the metric

    def _metric(
        self, metric: Metric, stream: Float[Tensor, "copy batch later d_model"], first: int
    ) -> Float[Tensor, "copy batch"]:
        """The metric of streams at the end, given at positions `first` and later.

        Those before are the run's own.
        """
        ends, W = self._ends(metric, first), self.weights
        if ends is not None and isinstance(metric, PositionMetric):
            rows = torch.arange(len(self.tokens), device=stream.device)
            return self._metric_at(metric, stream[:, rows, ends - first])
        before = W.unembed(self.resid_pre[-1][:, :first])
        return torch.stack([per_prompt(metric, torch.cat([before, W.unembed(x)], 1)) for x in stream])

    def _metric_at(
        self, metric: PositionMetric, x: Float[Tensor, "copy batch d_model"]
    ) -> Float[Tensor, "copy batch"]:
        """The metric of last streams at the one position that it reads.

        Only the logits of the tokens it reads are computed.
        """
        W = self.weights
        if metric.tokens is None or metric.beside is not None:
            return torch.stack([metric.measured(W.unembed(each)) for each in x])
        ids = metric.ids(len(self.tokens), x.device)
        logits = einsum(
            W.last(x), W.W_U[:, ids], "copy batch d_model, d_model batch token -> copy batch token"
        )
        return metric.of(W.capped(logits + W.b_U[ids]).flatten(0, 1)).view(len(x), -1)

    def _ends(self, metric: Metric, first: int) -> Int[Tensor, "batch"] | None:
        """The position a metric reads in each prompt; None: it may read any, or one before `first`."""
        if not isinstance(metric, PositionMetric):
            return None
        count = self.tokens.shape[1]
        ends = torch.as_tensor(metric.pos, device=self.tokens.device).expand(len(self.tokens)) % count
        return ends if ends.min() >= first else None

    # Heads that are held carry nothing from place to place

    def _held(self, edits: Sequence[Put], start: int, until: int) -> bool:
        """Whether in these layers all heads are held but for what is put.

        What is put must be the same in all copies, and the MLPs free or held.
        """
        held = {put.layer for put in edits if put.site == "z" and (put.value is None or len(put.value) == 1)}
        plain = (
            put.held and (put.site == "z" or (put.site == "mlp_out" and put.value is None)) for put in edits
        )
        return not self.edits and all(plain) and held >= {*range(start, until)}

    def _held_streams(
        self, edits: Sequence[Put], wanted: set[int], places: Int[Tensor, "batch place"]
    ) -> dict[int, Float[Tensor, "copy batch place d_model"]]:
        """The stream on entering the layers in `wanted`.

        A copy is computed from the first layer in which it is edited.
        """
        rows, W = torch.arange(len(places), device=places.device)[:, None], self.weights
        puts = {(put.site, put.layer): put for put in edits}
        sends = [_sends(puts.get(("z", layer)), rows, places, W.heads) for layer in range(max(wanted))]
        copies = copies_of(edits)
        begins = torch.full((copies,), max(wanted))
        for layer in reversed(range(max(wanted))):
            begins[sends[layer].flatten(1).any(1).cpu().expand(copies)] = layer
        order = begins.argsort(stable=True)
        streams, found = self.resid_pre[0][rows, places][None][:0], {}
        for layer in range(max(wanted) + 1):
            if layer in wanted:
                rest = self.resid_pre[layer][rows, places].expand(copies - len(streams), -1, -1, -1)
                found[layer] = torch.cat([streams, rest])[order.argsort()]
            if layer == max(wanted):
                return found
            begun = int((begins <= layer).sum())
            new = self.resid_pre[layer][rows, places].expand(begun - len(streams), -1, -1, -1)
            streams = torch.cat([streams, new])
            mine = sends[layer].expand(copies, -1, -1, -1)[order[:begun]]
            middle = streams + self._sent(layer, puts.get(("z", layer)), mine, rows, places)
            reads = streams if W.parallel else middle
            streams = middle + self._mlps(layer, reads, ("mlp_out", layer) in puts, rows, places)
        raise AssertionError("the last wanted layer ends the loop")

    def _sent(
        self,
        layer: int,
        put: Put | None,
        sends: Bool[Tensor, "copy batch place head"],
        rows: Tensor,
        places: Tensor,
    ) -> Float[Tensor, "copy batch place d_model"]:
        """What attention writes in each copy: what is held, and what the heads that are put change in it."""
        W = self.weights.layers[layer]
        held = self.at("attn_out", layer)[rows, places]
        if put is None or put.value is None or not sends.any():
            return held.expand(len(sends), -1, -1, -1)
        value = torch.as_tensor(put.value).to(self.z[layer])[0].expand_as(self.z[layer])[rows, places]
        z = self.z[layer][rows, places]
        if W.norms.after_attention is not None:  # the norm mixes what the heads write
            z = torch.where(sends[..., None], value, z).flatten(0, 1)
            return self.weights.attention_out(W, z).unflatten(0, (len(sends), -1))
        W_O = W.out[0].unflatten(0, (self.weights.heads, -1))
        change = einsum(
            value - z, W_O, "batch place head d_head, head d_head d_model -> batch place head d_model"
        )
        mixed = "copy batch place head, batch place head d_model -> copy batch place d_model"
        return held + einsum(sends.to(change), change, mixed)

    def _mlps(
        self,
        layer: int,
        streams: Float[Tensor, "copy batch place d_model"],
        held: bool,
        rows: Tensor,
        places: Tensor,
    ) -> Float[Tensor, "copy batch place d_model"]:
        """What the MLP writes in each copy, or in the run itself where it is held."""
        if held or not len(streams):
            return self.at("mlp_out", layer)[rows, places].expand_as(streams)
        W, some = self.weights, streams.flatten(0, 1).split(max(1, ROWS // places.shape[1]))
        return torch.cat([W.mlp(W.layers[layer], W.mlp_in(layer, part)) for part in some]).view_as(streams)

    def _held_metric(self, metric: Metric, edits: Sequence[Put]) -> Float[Tensor, "copy batch"]:
        ends, last = self._ends(metric, 0), len(self.weights.layers)
        if ends is not None and isinstance(metric, PositionMetric):
            return self._metric_at(metric, self._held_streams(edits, {last}, ends[:, None])[last][:, :, 0])
        every = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand(len(self.tokens), -1)
        return self._metric(metric, self._held_streams(edits, {last}, every)[last], 0)

    def _heads_at(
        self,
        site: str,
        layer: int,
        streams: Float[Tensor, "copy batch place d_model"],
        places: Int[Tensor, "batch place"],
    ) -> Float[Tensor, "copy batch place head d_head"]:
        """The queries, keys or values read from streams at some places."""
        W = self.weights
        found = W.heads_of(W.reads(layer, streams).flatten(0, 1), getattr(W.layers[layer], site.upper()))
        found = found if site == "v" else W.attends[layer].normed(site, found)
        return found.transpose(1, 2).unflatten(0, (len(streams), -1))

    # Memory

    def _in_batches(self, run: Callable[[slice], Tensor], copies: int, first: int, metric: Metric) -> Tensor:
        """Copies in batches that fit into free memory.

        Where memory runs out all the same, in smaller ones.
        """
        size, start, done = min(copies, self._batch(first, metric)), 0, []
        while start < copies:
            try:
                done.append(run(slice(start, min(start + size, copies))))
                start += size
            except RuntimeError as error:
                if not any(words in str(error).lower() for words in OUT_OF_MEMORY):
                    raise
                if size == 1:
                    raise MemoryError(
                        f"One run of {len(self.tokens)} prompts from position {first} on does not fit into "
                        f"the {free_bytes(self.tokens.device) / 1e9:.1f} GB that are free. "
                        "Patch fewer prompts at a time."
                    ) from None
                size = (size + 1) // 2
        return torch.cat(done)

    def _batch(self, first: int, metric: Metric) -> int:
        """How many copies to run at once."""
        prompts, count = self.tokens.shape
        later, d_model = count - first, self.resid_pre[0].shape[-1]
        d_mlp, kv = (matrix[0].shape[1] for matrix in (self.weights.layers[0].up, self.weights.layers[0].K))
        floats = 6 * later * (d_model + d_mlp) + 8 * count * kv
        if getattr(metric, "tokens", None) is None:
            floats += 2 * self.model.cfg.d_vocab * (1 if isinstance(metric, PositionMetric) else later)
        device = self.tokens.device
        a_copy = prompts * floats * self.resid_pre[0].element_size()
        fits = free_bytes(device) // (4 * a_copy)  # in a quarter of what is free
        most = ROWS // (prompts * later) if device.type == "cpu" else MOST_ROWS // prompts
        return max(1, min(fits, most))


class _Copies:
    """Some changed copies of a run on their way: rows are copies times prompts."""

    def __init__(self, run: Fast, edits: Sequence[Put], copies: slice, past: Fast, note: Note | None, dtype):
        self.run, self.copies, self.past, self.note, self.dtype = run, copies, past, note, dtype
        self.many, self.W = copies.stop - copies.start, run.weights
        self.mine, self.puts = edits, [*run.made, *((put, run) for put in edits)]

    def kept(self, values: Float[Tensor, "batch ..."]) -> Float[Tensor, "row ..."]:
        """What the run itself has, for each copy."""
        return values.expand(self.many, *values.shape).flatten(0, 1)

    def edits(self, site: str, layer: int) -> bool:
        """Whether these copies are edited there."""
        sites = {"attention": ATTENTION, "mlp": MLP}.get(site, (site,))
        return any(put.layer == layer and put.site in sites for put in self.mine)

    def edit(self, site: str, layer: int, x: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        """x with the edits of this site made.

        Queries, keys and values have their heads before their positions.
        """
        swap = (lambda y: y.transpose(-3, -2)) if site in ("q", "k", "v") else (lambda y: y)
        if self.note and site == "resid_pre":
            self.note("resid_pre read", layer, x)
        for put, run in self.puts:
            if (put.site, put.layer) != (site, layer):
                continue
            if site in ("k", "v") and put.heads > x.shape[1]:  # for query heads alone
                x = x.repeat_interleave(self.W.heads // x.shape[1], dim=1)
            kept = run.at(site, layer) if put.held else x
            if site in ("k", "v") and put.held:
                kept = kept.repeat_interleave(x.shape[1] // kept.shape[2], dim=2)
            x = swap(put.into(swap(x.unflatten(0, (self.many, -1))), kept, self.copies)).flatten(0, 1)
        if self.note:
            self.note(site, layer, x)
        return x

    def attention(
        self, layer: int, stream: Float[Tensor, "row later d_model"], first: int, late: int, live: bool
    ) -> Float[Tensor, "row its_later d_model"]:
        """What attention writes at positions `late` and later.

        Not live: the stream is the run's own on entering.
        """
        W, M, way, run = self.W, self._matrices(layer), self.W.attends[layer], self.run
        x = W.reads(layer, stream) if live else None
        q = self._heads("q", layer, x, late, first)
        k = self._heads("k", layer, x, first, first)
        v = self._heads("v", layer, x, first, first)
        if any(put.layer == layer and put.site == "pattern" for put, _ in self.puts):
            pattern = self.edit("pattern", layer, way.pattern(q, k))
            v = v.repeat_interleave(W.heads // v.shape[1], dim=1)
            z = einsum(pattern, v, "row query head pos, row head pos d_head -> row query head d_head")
        elif live or any(self.edits(site, layer) for site in "qkv"):
            z = way.attend(q, k, v)
        else:
            z = self.kept(run.z[layer][:, late:])
        return self.edit("attn_out", layer, W.attention_out(M, self.edit("z", layer, z)))

    def _heads(
        self, site: str, layer: int, x: Float[Tensor, "row later d_model"] | None, begin: int, first: int
    ) -> Float[Tensor, "row head pos d_head"]:
        """Queries from position `begin` on, or all keys or values, as they are used.

        x: what attention reads at positions `first` and later; None: what it reads in the run itself
        """
        way, used = self.W.attends[layer], {"q": "queries", "k": "keys", "v": "v"}[site]
        if x is None and not self.edits(site, layer):
            return self.kept(getattr(self.run, used)[layer][:, :, begin if site == "q" else 0 :])
        if x is None:
            made = self.kept(getattr(self.run, site)[layer][:, :, begin:])
        else:
            made = self.W.heads_of(x[:, begin - first :], getattr(self._matrices(layer), site.upper()))
            if self.note:
                self.note(f"{site} read", layer, made)
            made = made if site == "v" else way.normed(site, made)
        made = self.edit(site, layer, made)
        if site != "v" and not way.plain:
            made = way.finished(site, made, slice(begin, begin + made.shape[2]))
        if self.note and used != site:
            self.note(used, layer, made)
        return made if site == "q" else self._after(used, layer, made, first)

    def mlp(
        self, layer: int, stream: Float[Tensor, "row later d_model"], live: bool
    ) -> Float[Tensor, "row later d_model"]:
        """What the MLP writes."""
        if not live and not self.edits("post", layer):
            kept = self.run.at("mlp_out", layer)
            return self.edit("mlp_out", layer, self.kept(kept[:, kept.shape[1] - stream.shape[1] :]))
        x = self.W.mlp_in(layer, stream)
        if self.note:
            x = x.view_as(x)  # a tensor of its own, also where there is no norm before the MLP
            self.note("mlp in", layer, x)
        M = self._matrices(layer)
        neurons = self.edit("post", layer, self.W.neurons(M, x))
        return self.edit("mlp_out", layer, self.W.mlp_out(M, neurons))

    def _after(
        self, name: str, layer: int, new: Float[Tensor, "row head later d_head"], first: int
    ) -> Float[Tensor, "row head pos d_head"]:
        """The run's keys or values before `first`, then each copy's own."""
        if not first:
            return new
        past = getattr(self.past, name)[layer][:, :, :first]
        past = _shared(past, new).expand(self.many, -1, -1, -1, -1)
        return torch.cat([past, new.unflatten(0, (self.many, -1))], 3).flatten(0, 1)

    def _matrices(self, layer: int) -> Layer:
        if self.dtype is None:
            return self.W.layers[layer]
        cast = self.run.__dict__.setdefault("_cast", {})
        if (layer, self.dtype) not in cast:
            cast[layer, self.dtype] = self.W.layers[layer].to(self.dtype)
        return cast[layer, self.dtype]


def _shared(
    old: Float[Tensor, "batch head pos d_head"], new: Float[Tensor, "row its_head its_pos d_head"]
) -> Float[Tensor, "batch its_head pos d_head"]:
    """Keys or values for as many heads as the new ones have: for query heads, where those are told apart."""
    return old.repeat_interleave(new.shape[1] // old.shape[1], dim=1)


def _touched(edits: Sequence[Put], count: int) -> tuple[int, int]:
    """The first layer and the first position that is touched; (0, `count`) if none is."""
    touched = {put.layer: count for put in edits}
    for put in edits:
        if put.value is None:  # what is held is as it was, where nothing else has changed it
            continue
        where = torch.ones(1, 1, 1, dtype=torch.bool) if put.where is None else put.where
        here = where.transpose(0, 2).flatten(1).any(1)
        if here.any():
            touched[put.layer] = min(touched[put.layer], int(here.float().argmax()) if len(here) > 1 else 0)
    layers = [layer for layer, first in touched.items() if first < count]
    return (min(layers), min(touched.values())) if layers else (0, count)


def _sends(
    put: Put | None, rows: Tensor, places: Int[Tensor, "batch place"], heads: int
) -> Bool[Tensor, "copy batch place head"]:
    """Where the heads of a layer are put, at some places of each prompt."""
    if put is None or put.value is None:
        return torch.zeros(1, *places.shape, heads, dtype=torch.bool, device=places.device)
    if put.where is None:
        return torch.ones(1, *places.shape, heads, dtype=torch.bool, device=places.device)
    where = (put.where if put.where.ndim == 4 else put.where[..., None]).to(places.device)
    where = where.expand(-1, len(places), -1, heads)
    return where.expand(-1, -1, places.shape[1], -1) if where.shape[2] == 1 else where[:, rows, places]
