"""Direct logit attribution: which parts of the model write the answer into the residual stream?

The last residual stream is the sum of what every part wrote, and the logits read it with one matrix. So a
logit, or the difference of two, is a sum with one term for each part. The last norm divides by a length that
all parts make together; it is held at its value. Positive: the part speaks for the answer (against `wrong`).

A term is what a part says itself, to the output. What it makes later parts say is not in it.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import one_of
from mechlab.moved import was
from mechlab.prompts import Answers, answer_ids
from mechlab.results import Scores
from mechlab.runs.caching import only

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WRITTEN = ("hook_embed", "hook_pos_embed", "hook_attn_out", "hook_mlp_out", "ln_final.hook_scale")


@was(position="pos")
@torch.no_grad()
def direct_logit_attribution(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    answers: Answers,
    wrong: Answers | None = None,
    *,
    unit: str = "component",
    pos: int = -1,
) -> Scores:
    """What each part adds to the logit of `answers`, or to its difference to `wrong`, in logits.

    unit:  "layer"      dims ("layer",): attention and MLP of a layer together
           "component"  dims ("component",): embedding, each attention, each MLP, constants
           "head"       dims ("layer", "head")
           "neuron"     dims ("layer", "neuron"): each MLP neuron through its row of W_out

    `whole` is the logit (difference) less the parts that are not of this unit, which stand in `baselines` as
    "everything else"; so `gap` is the error of the sum, about 1e-5. Components and heads are TransformerLens'
    `direct_logit_attribution`, which refuses models whose norms are not folded (load(fold=False)), where the
    numbers would be wrong. Elhage et al. 2021; Wang et al. 2022. `answers`: words of one token, or ids.
    """
    one_of("unit", unit, UNITS)
    right = answer_ids(model, answers, len(base))
    rival = None if wrong is None else answer_ids(model, wrong, len(base))
    return UNITS[unit](model, base, right, rival, pos)


def _layers(model: "TransformerBridge", *asked) -> Scores:
    logit = _Logit(model, *asked)
    return logit.scores((logit.attention + logit.mlp).T, ("layer",), rest=logit.outside)


def _components(model: "TransformerBridge", *asked) -> Scores:
    logit = _Logit(model, *asked)
    kinds = [f"{kind} {layer}" for layer in range(model.cfg.n_layers) for kind in ("attention", "MLP")]
    both = torch.stack([logit.attention, logit.mlp], 1).flatten(0, 1)
    values = torch.cat([torch.stack([*logit.embedded.values()]), both, logit.constant[None]])
    labels = {"component": [*logit.embedded, *kinds, "constants"]}
    return Scores.over_prompts(values.T, ("component",), logit.name, labels=labels, whole=logit.total)


def _heads(model: "TransformerBridge", *asked) -> Scores:
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    logit = _Logit(model, *asked, keep=("hook_z", f"blocks.{layers - 1}.hook_resid_post"))
    found = torch.stack([*logit.terms("head").values()][: layers * heads], 1)  # after them stands the rest
    rest = logit.outside + logit.mlp.sum(0) + logit.adds(_sum_of_biases(model, "b_O"))
    return logit.scores(found.unflatten(1, (layers, heads)), ("layer", "head"), rest)


def _neurons(model: "TransformerBridge", *asked) -> Scores:
    logit = _Logit(model, *asked, keep=("mlp.hook_post",))
    active = [logit.at(f"blocks.{layer}.mlp.hook_post") for layer in range(model.cfg.n_layers)]
    each = [a * (logit.direction @ block.mlp.W_out.T) for a, block in zip(active, model.blocks, strict=True)]
    rest = logit.outside + logit.attention.sum(0) + logit.adds(_sum_of_biases(model, "b_out"))
    return logit.scores(torch.stack(each, 1) / logit.scale[..., None], ("layer", "neuron"), rest)


UNITS = {"layer": _layers, "component": _components, "head": _heads, "neuron": _neurons}


class _Logit:
    """The logit that is asked about, or the difference of two: one run, and the terms of the sum.

    total:     the model's own;  constant: what the bias of the unembedding adds
    embedded:  what each embedding adds;  attention, mlp: what each layer's do
    direction: what the logit reads in the last stream;  scale: what the last norm divides by
    """

    def __init__(
        self,
        model: "TransformerBridge",
        base: Int[Tensor, "batch pos"],
        right: Int[Tensor, "batch"],
        rival: Int[Tensor, "batch"] | None,
        pos: int,
        keep: tuple[str, ...] = (),
    ):
        logits, self.cache = model.run_with_cache(base, names_filter=only(*WRITTEN, *keep))
        self.model, self.pos, rows = model, pos, torch.arange(len(base), device=base.device)
        self.asked: dict[str, Any] = {"answer_tokens": right, "incorrect_tokens": rival, "pos": pos}
        self.name = f"direct effect on the logit{'' if rival is None else ' difference'} (logits)"
        difference = lambda of: of(right) - (0 if rival is None else of(rival))
        self.total = difference(lambda ids: logits[rows, pos, ids])
        self.constant = difference(lambda ids: model.b_U[ids])
        self.direction = difference(lambda ids: model.W_U.T[ids])
        self.scale, parts = self.at("ln_final.hook_scale"), self.terms("component")
        self.attention, self.mlp = (
            torch.stack([value for label, value in parts.items() if label.endswith(kind)])
            for kind in ("attn_out", "mlp_out")
        )
        self.embedded = {label: value for label, value in parts.items() if not label.endswith("_out")}
        self.outside = sum(self.embedded.values()) + self.constant

    def terms(self, unit: str) -> dict[str, Float[Tensor, "batch"]]:
        """What each part adds, as TransformerLens computes it."""
        from transformer_lens.tools.analysis import direct_logit_attribution as attribute

        found = attribute(self.model, unit=unit, cache=self.cache, **self.asked)
        return dict(zip(found.labels, found.attribution, strict=True))

    def at(self, hook: str) -> Float[Tensor, "batch ..."]:
        """What was kept of a hook, at the position of the logit."""
        return self.cache[hook][:, self.pos]

    def adds(self, written: Float[Tensor, "d_model"]) -> Float[Tensor, "batch"]:
        """What a vector in the last stream adds to the logit."""
        return self.direction @ written / self.scale[:, 0]

    def scores(
        self, values: Float[Tensor, "batch ..."], dims: tuple[str, ...], rest: Float[Tensor, "batch"]
    ) -> Scores:
        """The terms of one unit; `rest` is what everything else adds."""
        others = {"everything else": rest.mean().item()}
        return Scores.over_prompts(values, dims, self.name, whole=self.total - rest, baselines=others)


def _sum_of_biases(model: "TransformerBridge", name: str) -> Float[Tensor, "d_model"]:
    """The biases of all layers, which no head and no neuron writes. Zero where the model has none."""
    try:
        return getattr(model, name).sum(0)
    except AttributeError:
        return torch.zeros(model.cfg.d_model, device=model.cfg.device)
