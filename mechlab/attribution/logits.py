"""Direct logit attribution: which parts of the model write the answer into the residual stream?

The last residual stream is the sum of what every part wrote, and the logits read it with one matrix. So a
logit, or the difference of two, is a sum with one term for each part. The last norm divides by a length that
all parts make together; it is held at its value. Positive: the part speaks for the answer (against `wrong`).

A term is what a part says itself, to the output. What it makes later parts say is not in it.
"""

from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import mlp_width, one_of
from mechlab.attribution.readout import (
    HeldNorm,
    close,
    columns,
    held,
    last_norm,
    norm_behind,
    scale_of_logits,
    wide,
)
from mechlab.moved import was
from mechlab.prompts import Answers, answer_ids
from mechlab.results import Scores
from mechlab.runs.caching import only
from mechlab.tokens import Batch, Prompts, batch_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WRITTEN = ("hook_embed", "hook_pos_embed", "hook_attn_out", "hook_mlp_out", "_post.hook_scale")
READ = ("ln_final.hook_scale", "unembed.hook_out")


@was(position="pos")
@torch.no_grad()
def direct_logit_attribution(
    model: "TransformerBridge",
    base: Prompts,
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
    pos:   where the logit is read; -1 is each prompt's own last token

    `whole` is the logit (difference) less the parts that are not of this unit, which stand in `baselines` as
    "everything else"; so `gap` is the error of the sum, about 1e-5. A norm behind attention or the MLP (Gemma
    2 and 3, OLMo 2) is held at its scale like the last one; a logit that is capped at the end (Gemma 2) is
    attributed before the cap, one that is multiplied there (Granite) after it. The numbers are those of
    TransformerLens' function of this name, which knows fewer architectures. Elhage et al. 2021; Wang et al.
    2022. `answers`: words of one token, or ids. Raises a `ValueError` where the terms do not add up to the
    model's logit, or an MLP has no neurons.
    """
    one_of("unit", unit, UNITS)
    batch = batch_of(model, base)
    right = answer_ids(model, answers, len(batch))
    rival = None if wrong is None else answer_ids(model, wrong, len(batch))
    return UNITS[unit](batch, right, rival, batch.position(pos))


def _layers(*asked) -> Scores:
    logit = _Logit(*asked)
    return logit.scores((logit.attention + logit.mlp).T, ("layer",), rest=logit.outside)


def _components(*asked) -> Scores:
    logit = _Logit(*asked)
    kinds = [f"{kind} {layer}" for layer in range(logit.layers) for kind in ("attention", "MLP")]
    both = torch.stack([logit.attention, logit.mlp], 1).flatten(0, 1)
    values = torch.cat([torch.stack([*logit.embedded.values()]), both, logit.constant[None]])
    labels = {"component": [*logit.embedded, *kinds, "constants"]}
    return Scores.over_prompts(
        values.T, ("component",), logit.name, labels=labels, whole=logit.total, units=logit.units
    )


def _heads(*asked) -> Scores:
    logit = _Logit(*asked, keep=("attn.hook_z",))
    rest, found = logit.outside + logit.mlp.sum(0), []
    for layer, block in enumerate(logit.model.blocks):
        slope, constant = logit.through(layer, "ln1_post")
        W_O = wide(block.attn.W_O)
        z = logit.at(f"blocks.{layer}.attn.hook_z").reshape(-1, *W_O.shape[:2])
        found.append(
            einsum(z, W_O, slope, "batch head d_head, head d_head d_model, batch d_model -> batch head")
        )
        rest = rest + constant + _bias(block.attn.b_O, slope)
    return logit.scores(torch.stack(found, 1), ("layer", "head"), rest)


def _neurons(*asked) -> Scores:
    mlp_width(asked[0].model)
    logit = _Logit(*asked, keep=("mlp.hook_post",))
    rest, found = logit.outside + logit.attention.sum(0), []
    for layer, block in enumerate(logit.model.blocks):
        slope, constant = logit.through(layer, "ln2_post")
        found.append(logit.at(f"blocks.{layer}.mlp.hook_post") * (slope @ wide(block.mlp.W_out).T))
        rest = rest + constant + _bias(block.mlp.b_out, slope)
    return logit.scores(torch.stack(found, 1), ("layer", "neuron"), rest)


UNITS = {"layer": _layers, "component": _components, "head": _heads, "neuron": _neurons}


class _Logit:
    """The logit that is asked about, or the difference of two: one run, and the terms of the sum.

    total:     the model's own;  constant: what biases at the end add
    embedded:  what each embedding adds;  attention, mlp: what each layer's do, [layer, batch]
    slope:     what the logit reads of the last stream, with the last norm's scale held
    """

    def __init__(
        self,
        batch: Batch,
        right: Int[Tensor, "batch"],
        rival: Int[Tensor, "batch"] | None,
        pos: Int[Tensor, "batch"],
        keep: tuple[str, ...] = (),
    ):
        model = self.model = batch.model
        last_norm(model)  # refuses models without one
        self.layers, self.pos, self.units = model.cfg.n_layers, pos, batch.units
        self.rows = torch.arange(len(batch), device=pos.device)
        end, self.cache = model.run_with_cache(batch.tokens, names_filter=only(*WRITTEN, *READ, *keep))
        self.name = f"direct effect on the logit{'' if rival is None else ' difference'} (logits)"
        difference = lambda of: of(right) - (0 if rival is None else of(rival))
        last = last_norm(model, self.at("ln_final.hook_scale"))
        logits = self.at("unembed.hook_out")
        times = scale_of_logits(logits, end[self.rows, pos])
        self.total = times * difference(lambda ids: logits[self.rows, ids])
        direction = times * difference(lambda ids: columns(model, ids))
        self.slope = last.back(direction)
        bias = difference(lambda ids: wide(model.b_U.detach())[ids])
        self.constant = last.added(direction) + times * bias
        self.embedded = {
            name: self.adds(f"hook_{name}") for name in ("embed", "pos_embed") if f"hook_{name}" in self.cache
        }
        self.attention = torch.stack([self.adds(f"blocks.{n}.hook_attn_out") for n in range(self.layers)])
        self.mlp = torch.stack([self.adds(f"blocks.{n}.hook_mlp_out") for n in range(self.layers)])
        self.outside = sum(self.embedded.values()) + self.constant
        # what the sum's error is measured by: the lengths of the last stream and of what is read of it
        self.size = last.scale[:, 0] * self.slope.shape[-1] ** 0.5 * self.slope.norm(dim=-1)
        self.require(self.outside + (self.attention + self.mlp).sum(0), self.total, "parts")

    def at(self, hook: str) -> Float[Tensor, "batch ..."]:
        """What was kept of a hook, at the position of the logit."""
        return wide(self.cache[hook][self.rows, self.pos])

    def adds(self, hook: str) -> Float[Tensor, "batch"]:
        """What a part adds to the logit; one that the model does not have adds nothing."""
        return (self.at(hook) * self.slope).sum(-1) if hook in self.cache else torch.zeros_like(self.total)

    def through(self, layer: int, name: str) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch"]]:
        """What is read of what attention or MLP writes before the norm behind it, and what that norm adds."""
        norm = norm_behind(self.model, layer, name)
        if norm is None:
            return self.slope, torch.zeros_like(self.total)
        behind: HeldNorm = held(norm, self.at(f"blocks.{layer}.{name}.hook_scale"))
        return behind.back(self.slope), behind.added(self.slope)

    def require(self, found: Float[Tensor, "batch"], wanted: Float[Tensor, "batch"], what: str) -> None:
        """Refuse terms that do not add up."""
        if not close(found, wanted, self.model, self.size):
            raise ValueError(
                f"The {what} of this model do not add up to its logit ({found[0]:.3f} of {wanted[0]:.3f} on "
                "the first prompt): something writes into its stream, or scales it, that is not known here."
            )

    def scores(
        self, values: Float[Tensor, "batch ..."], dims: tuple[str, ...], rest: Float[Tensor, "batch"]
    ) -> Scores:
        """The terms of one unit; `rest` is what everything else adds."""
        self.require(values.flatten(1).sum(1) + rest, self.total, f"{dims[-1]}s")
        others = {"everything else": rest.mean().item()}
        given = {"whole": self.total - rest, "baselines": others, "units": self.units}
        return Scores.over_prompts(values, dims, self.name, **given)


def _bias(
    bias: Float[Tensor, "d_model"] | None, slope: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch"]:
    """What a bias adds, which no head and no neuron writes."""
    return torch.zeros_like(slope[:, 0]) if bias is None else slope @ wide(bias)
