"""Direct logit attribution: which parts of the model write the answer into the residual stream?

The last residual stream is the sum of what every part wrote, and the logits read it with one matrix. So a logit,
or the difference of two, is a sum with one term for each part. The last norm divides by a length that all parts
make together; it is held at its value. Positive: the part speaks for the answer (against `wrong`).

A term is what a part says itself, to the output. What it makes later parts say is not in it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.prompts import answer_ids
from mechlab.results import Scores
from mechlab.runs.caching import only

UNITS = ("layer", "component", "head", "neuron")


@torch.no_grad()
def direct_logit_attribution(
    model,
    base: Int[Tensor, "batch pos"],
    answers,
    wrong=None,
    *,
    unit: str = "component",
    position: int = -1,
) -> Scores:
    """What each part adds to the logit of `answers`, or to its difference to `wrong`, at `position`, in logits.

    unit:  "layer"      dims ("layer",): attention and MLP of a layer together
           "component"  dims ("component",): embedding, each attention, each MLP, constants
           "head"       dims ("layer", "head")
           "neuron"     dims ("layer", "neuron"): each MLP neuron through its row of W_out

    `whole` is the logit (difference) less the parts that are not of this unit, which stand in `baselines` as
    "everything else"; so `gap` is the error of the sum, about 1e-5. Components and heads are TransformerLens'
    `direct_logit_attribution`, which refuses models whose norms are not folded (load(fold=False)), where the
    numbers would be wrong. Elhage et al. 2021; Wang et al. 2022. `answers`: words of one token, or ids.
    """
    from transformer_lens.tools.analysis import direct_logit_attribution as attribute

    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}; it must be one of {', '.join(map(repr, UNITS))}.")
    right = answer_ids(model, answers, len(base))
    rival = None if wrong is None else answer_ids(model, wrong, len(base))
    logits, cache = model.run_with_cache(
        base, names_filter=only("hook_embed", "hook_pos_embed", "hook_attn_out", "hook_mlp_out", "hook_z",
                                "hook_post", "ln_final.hook_scale", "hook_resid_pre", "hook_resid_post")
    )  # fmt: skip
    rows = torch.arange(len(base), device=base.device)
    total, constant = logits[rows, position, right], model.b_U[right]
    if rival is not None:
        total, constant = total - logits[rows, position, rival], constant - model.b_U[rival]
    asked = {"answer_tokens": right, "incorrect_tokens": rival, "pos": position, "cache": cache}
    found = attribute(model, unit="component", **asked)
    parts = dict(zip(found.labels, found.attribution, strict=True))
    attention, mlp = _of(parts, "attn_out"), _of(parts, "mlp_out")  # [layer, batch]
    outer = {label: value for label, value in parts.items() if not label.endswith(("attn_out", "mlp_out"))}
    name = f"direct effect on the logit{'' if rival is None else ' difference'} (logits)"

    if unit == "component":
        layers = range(model.cfg.n_layers)
        labels = [*outer, *[f"{kind} {n}" for n in layers for kind in ("attention", "MLP")], "constants"]
        both = torch.stack([attention, mlp], 1).flatten(0, 1)
        values = torch.cat([*[value[None] for value in outer.values()], both, constant[None]])
        return Scores.over_prompts(values.T, ("component",), name, labels={"component": labels}, whole=total)

    outside = sum(outer.values()) + constant
    if unit == "layer":
        return _of_unit((attention + mlp).T, ("layer",), name, total, outside)
    direction = model.W_U.T[right] - (0 if rival is None else model.W_U.T[rival])  # [batch, d_model]
    scale = cache["ln_final.hook_scale"][:, position]
    biases = direction @ (_sum_of_biases(model, "b_O" if unit == "head" else "b_out")) / scale[:, 0]
    if unit == "head":
        heads = model.cfg.n_layers * model.cfg.n_heads
        values = attribute(model, unit="head", **asked).attribution[:heads]
        values = values.T.reshape(len(base), model.cfg.n_layers, model.cfg.n_heads)
        return _of_unit(values, ("layer", "head"), name, total, outside + mlp.sum(0) + biases)
    values = [
        cache["post", n][:, position] * (direction @ model.blocks[n].mlp.W_out.T)
        for n in range(model.cfg.n_layers)
    ]
    values = torch.stack(values, 1) / scale[..., None]
    return _of_unit(values, ("layer", "neuron"), name, total, outside + attention.sum(0) + biases)


def require_folded(model) -> None:
    """Raise `ValueError` unless the last norm is folded into the weights, as reading parts of the stream needs."""
    for name, folded in (("weight", 1.0), ("bias", 0.0)):
        values = getattr(model.ln_final, name, None)
        if isinstance(values, Tensor) and not (values == folded).all():
            raise ValueError(
                "The norms of this model are not folded into the weights, so parts of the residual stream cannot be read "
                "through W_U. Load it with fold=True, which is the default."
            )


def _of_unit(values: Float[Tensor, "batch ..."], dims, name: str, total: Tensor, rest: Tensor) -> Scores:
    others = {"everything else": rest.mean().item()}
    return Scores.over_prompts(values, dims, name, whole=total - rest, baselines=others)


def _of(parts: dict[str, Tensor], ending: str) -> Float[Tensor, "layer batch"]:
    return torch.stack([value for label, value in parts.items() if label.endswith(ending)])


def _sum_of_biases(model, name: str) -> Float[Tensor, "d_model"]:
    """The biases of all layers: constants that no head and no neuron writes. Zero where the model has none."""
    try:
        return getattr(model, name).sum(0)
    except AttributeError:
        return torch.zeros(model.cfg.d_model, device=model.cfg.device)
