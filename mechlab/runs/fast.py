"""The rest of the model: run many changed copies of a run from the layer and the position where they differ.

A patch at layer L and position p leaves every earlier layer, and every earlier position, as it was. So the stream is
taken up at layer L, only positions p, p+1, ... are computed, they look back at the keys and values of the first run,
and only the logits that the metric reads are unembedded. Nothing is approximated: the numbers are those of a full
run, for a fraction of the multiplications.

Written for models of the GPT-2 and Llama kind. There is no list of architectures: on setting up, the result is
compared with the model's own logits, and a model that computes something else is refused (`NotResumable`).
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.metrics import Metric, Reading, per_prompt
from mechlab.runs.caching import free_bytes
from mechlab.runs.matrices import ACTIVATIONS, Arithmetic, Layer, matrices_of, project

ROWS = 2048  # on a CPU larger batches are no faster: the matrix products are already at their best

# (kind, layer, value) -> what it shall be instead. Kinds: "q" [copy, head, later, d_head]; "k", "v" [copy, head, pos,
# d_head], for key/value heads or for every query head; "z" [copy, later, head, d_head]; "attn_out", "mlp_in", "mlp_out"
# [copy, later, d_model]. "later" are the last positions; in the last layer only those that are read.
Edit = Callable[[str, int, Tensor], Tensor]


class NotResumable(ValueError):
    """This model computes something that the short way does not know. Run it in full instead."""


class Resume(Arithmetic):
    """One run of some prompts of equal length, kept so that changed copies can be taken up anywhere in it.

    resid_pre: [layer + 1, prompt, pos, d_model], the stream on entering each layer, and at the end
    resid_mid: [layer, prompt, pos, d_model], the stream between attention and MLP
    queries, keys, values: one [prompt, head, pos, d_head] a layer, turned by their positions (rotary)
    z:         [layer, prompt, pos, head, d_head], what the heads hand to W_O

    embedded: a stream to start from instead of the prompts' own embeddings, such as one with noise on it
    like:     another run of this model: it was checked, and what both begin with is not computed again
    """

    @torch.no_grad()
    def __init__(
        self, model, base: Int[Tensor, "prompt pos"], *, embedded: Tensor | None = None, like: "Resume | None" = None
    ):  # fmt: skip
        cfg = model.cfg
        if cfg.act_fn not in ACTIVATIONS or cfg.normalization_type not in ("RMS", "RMSPre", "LN", "LNPre"):
            raise NotResumable(f"The short way does not know {cfg.act_fn!r} with {cfg.normalization_type!r}.")
        self.model, self.base = model, base
        self.heads, self.d_head = cfg.n_heads, cfg.d_head
        self.kv_heads = cfg.n_key_value_heads or cfg.n_heads
        self.act, self.eps = ACTIVATIONS[cfg.act_fn], cfg.eps
        self.centred = cfg.normalization_type.startswith("LN")
        names = ("blocks.0.hook_resid_pre", "rotary_emb.hook_cos", "rotary_emb.hook_sin")
        names = [name for name in names if name in model.hook_dict]
        _, cache = model.run_with_cache(base, names_filter=names, stop_at_layer=1)
        stream = cache[names[0]]
        if like is not None:
            self.layers, self.turn = like.layers, like.turn
        else:
            turns = [cache[name] for name in names[1:]]
            self.turn = None if not turns else tuple(part.reshape(-1, *part.shape[-2:])[0] for part in turns)
            self.layers = [matrices_of(model, layer) for layer in range(cfg.n_layers)]
            self._keep(stream[:1], None)  # one prompt tells whether the formulas are right
            found, logits = self.unembed(self.resid_pre[-1]), model(base[:1])
            off = (found - logits).abs().max().item()
            if not off <= 1e-3 * max(1.0, logits.abs().max().item()):
                raise NotResumable(
                    f"The short way gives other logits than the model: off by {off:.2g}. Run it in full instead."
                )
        self._keep(stream if embedded is None else embedded, like if embedded is None else None)

    def _keep(self, stream: Float[Tensor, "prompt pos d_model"], like: "Resume | None") -> None:
        first = 0 if like is None else self.first_difference(like)
        stream = stream[:, first:]
        pre, mid, z, self.queries, self.keys, self.values = [], [], [], [], [], []
        for number, layer in enumerate(self.layers):
            pre.append(stream)
            x = self.norm(stream)
            found = [
                self.heads_of(x, layer.Q, first),
                self.heads_of(x, layer.K, first),
                self.heads_of(x, layer.V),
            ]
            if first:
                found = [
                    torch.cat([past[number][:, :, :first], new], 2)
                    for past, new in zip((like.queries, like.keys, like.values), found, strict=True)
                ]
            for kept, part in zip((self.queries, self.keys, self.values), found, strict=True):
                kept.append(part)
            heads = self.attend(found[0][:, :, first:], *found[1:], first)
            z.append(heads)
            stream = stream + project(heads.flatten(2), layer.out)
            mid.append(stream)
            stream = stream + self.mlp(layer, self.norm(stream))
        kept = [torch.stack(parts) for parts in ([*pre, stream], mid, z)]
        if first:
            before = (like.resid_pre, like.resid_mid, like.z)
            kept = [torch.cat([past[:, :, :first], new], 2) for past, new in zip(before, kept, strict=True)]
        self.resid_pre, self.resid_mid, self.z = kept

    def first_difference(self, other: "Resume") -> int:
        """The first position at which any prompt has another token; before it the two runs are equal."""
        same = self.base.shape == other.base.shape
        return int((self.base != other.base).any(0).float().argmax()) if same else 0

    def written(self, site: str, layer: int) -> Float[Tensor, "prompt pos d_model"]:
        """What "attn_out" or "mlp_out" of a layer adds to the stream."""
        middle = self.resid_mid[layer]
        return middle - self.resid_pre[layer] if site == "attn_out" else self.resid_pre[layer + 1] - middle

    def pattern(self, layer: int) -> Float[Tensor, "prompt head query_pos key_pos"]:
        """The attention of each query head of a layer."""
        q = self.queries[layer]
        k = self.keys[layer].repeat_interleave(self.heads // self.kv_heads, dim=1)
        fit = (q @ k.transpose(2, 3)) / self.d_head**0.5
        return fit.masked_fill(torch.ones_like(fit, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)

    def ends(self, metric: Metric) -> Float[Tensor, "prompt"]:
        """The metric of the run itself."""
        return self.measure(metric, len(self.layers), self.resid_pre[-1][None], 0)[0]

    def measure(
        self,
        metric: Metric,
        layer: int,
        stream: Float[Tensor, "copy prompt later d_model"],
        first: int,
        *,
        middle: bool = False,
        edit: Edit | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "copy prompt"]:
        """The metric of changed copies of the run, each with all prompts, taken up on entering `layer`.

        stream: at positions `first` and later; earlier ones are the base's. middle: between attention and MLP
        edit:   called on what each later part computes, for several copies at a time: copies=slice says which
        dtype:  for the matrix products; keys, values and the stream stay as they are

        Copies are run in batches that fit into free memory; where memory runs out all the same, in smaller ones.
        """
        if first + stream.shape[2] != self.base.shape[1]:
            raise ValueError(
                f"The stream has {stream.shape[2]} positions from position {first} on; prompts have {self.base.shape[1]}."
            )
        size, start, done = min(len(stream), self._batch(stream, metric)), 0, []
        while start < len(stream):
            try:
                copies = stream[start : start + size]
                part = edit and partial(edit, copies=slice(start, start + len(copies)))
                done.append(self._measure(metric, layer, copies, first, middle, part, dtype))
                start += size
            except RuntimeError as error:
                if not any(words in str(error).lower() for words in ("out of memory", "can't allocate")):
                    raise
                if size == 1:
                    raise MemoryError(
                        f"One run of {stream.shape[1]} prompts from position {first} on does not fit into the "
                        f"{free_bytes(stream.device) / 1e9:.1f} GB that are free. Patch fewer prompts at a time."
                    ) from None
                size = (size + 1) // 2
        return torch.cat(done)

    @torch.no_grad()
    def _measure(self, metric, layer, stream, first, middle, edit, dtype) -> Float[Tensor, "copy prompt"]:
        copies, prompts = stream.shape[:2]
        ends = self._ends(metric, first)
        read = first if ends is None else int(ends.min())
        stream = self.finish(layer, stream.flatten(0, 1), first, middle, edit, read - first, dtype)
        return self.read(metric, stream.unflatten(0, (copies, prompts)), first)

    def read(
        self, metric: Metric, stream: Float[Tensor, "copy prompt later d_model"], first: int
    ) -> Float[Tensor, "copy prompt"]:
        """The metric of streams at the end, of which the last positions are given; those before `first` are the base's."""
        copies, prompts, later = stream.shape[:3]
        stream, W_U, b_U = self.norm(stream), self.model.W_U, self.model.b_U
        ends = self._ends(metric, first)
        if ends is None:
            before = self.unembed(self.resid_pre[-1][:, :first])
            return torch.stack([per_prompt(metric, torch.cat([before, x @ W_U + b_U], 1)) for x in stream])
        stream = stream[:, torch.arange(prompts, device=stream.device), ends - (self.base.shape[1] - later)]
        if metric.tokens is None:
            return torch.stack([metric.of(x @ W_U + b_U) for x in stream])
        ids = metric.ids(prompts, stream.device)
        read_out = torch.einsum("cpd,dpt->cpt", stream, W_U[:, ids]) + b_U[ids]
        return metric.of(read_out.flatten(0, 1)).view(copies, prompts)

    def _ends(self, metric: Metric, first: int) -> Int[Tensor, "prompt"] | None:
        """The position a metric reads in each prompt; None: it may read any, or one that cannot change."""
        if not isinstance(metric, Reading):
            return None
        ends = (
            torch.as_tensor(metric.end, device=self.base.device).expand(len(self.base)) % self.base.shape[1]
        )
        return ends if ends.min() >= first else None

    def finish(
        self,
        layer: int,
        stream: Tensor,
        first: int,
        middle=False,
        edit: Edit | None = None,
        read: int = 0,
        dtype=None,
    ) -> Float[Tensor, "copy later d_model"]:
        """The stream at the end, from the `read`th of the given positions on. Gradients flow back to `stream`."""
        edit = edit or (lambda kind, layer, value: value)
        if layer == len(self.layers):
            return stream[:, read:]
        for current in range(layer, len(self.layers)):
            W = self.layers[current] if dtype is None else self._cast(current, dtype)
            wanted = read if current == len(self.layers) - 1 else 0  # in the last layer nobody reads the rest
            if not (middle and current == layer):
                x, copies = self.norm(stream), len(stream) // len(self.base)
                q = edit("q", current, self.heads_of(x[:, wanted:], W.Q, first + wanted))
                k = self._after(self.keys[current], self.heads_of(x, W.K, first), copies, first)
                v = self._after(self.values[current], self.heads_of(x, W.V), copies, first)
                k, v = edit("k", current, k), edit("v", current, v)
                z = edit("z", current, self.attend(q, k, v, first + wanted))
                stream = stream[:, wanted:] + edit("attn_out", current, project(z.flatten(2), W.out))
            else:
                stream = stream[:, wanted:]
            x = edit("mlp_in", current, self.norm(stream))
            stream = stream + edit("mlp_out", current, self.mlp(W, x))
        return stream

    def _after(self, kept: Tensor, new: Tensor, copies: int, first: int) -> Tensor:
        """The base's keys or values up to `first`, then each copy's own."""
        past = kept[:, :, :first].expand(copies, -1, -1, -1, -1)
        return torch.cat([past, new.unflatten(0, (copies, -1))], 3).flatten(0, 1)

    def _cast(self, layer: int, dtype: torch.dtype) -> Layer:
        cast = self.__dict__.setdefault("_as", {})
        if (layer, dtype) not in cast:
            cast[layer, dtype] = self.layers[layer].to(dtype)
        return cast[layer, dtype]

    def _batch(self, stream: Tensor, metric: Metric) -> int:
        """How many copies to run at once."""
        _, prompts, later, d_model = stream.shape
        d_mlp, kv = (matrix[0].shape[1] for matrix in (self.layers[0].up, self.layers[0].K))
        floats = 6 * later * (d_model + d_mlp) + 8 * self.base.shape[1] * kv
        if getattr(metric, "tokens", None) is None:
            floats += 2 * self.model.cfg.d_vocab * (1 if isinstance(metric, Reading) else later)
        needed = 4 * prompts * floats * stream.element_size()  # a quarter of what is free may be used
        fits = free_bytes(stream.device) // needed
        return max(1, min(fits, ROWS // (prompts * later)) if stream.device.type == "cpu" else fits)
