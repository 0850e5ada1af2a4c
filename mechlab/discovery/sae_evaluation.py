"""What a dictionary is worth: how does the model behave when its reconstruction is put in?

Rebuilding an activation well and preserving what the model does with it are two things. `splice` measures
both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import layer_of
from mechlab.discovery.sae import SparseAutoencoder
from mechlab.loading.origin import Origin, made_from
from mechlab.runs.hooks import Hook, check_name, intervene
from mechlab.statistics import FEWEST_UNITS, Estimate, estimate
from mechlab.tokens import Prompts, texts_of

# Hooks whose activations have heads or queries on an axis of their own.
WITH_HEADS = {f"hook_{n}" for n in ("q", "k", "v", "z", "rot_q", "rot_k", "result", "pattern", "attn_scores")}
WITH_HEADS |= {f"hook_{n}_input" for n in "qkv"} | {"hook_attn_in"}

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@torch.inference_mode(False)
@torch.no_grad()
def token_activations(
    model: "TransformerBridge",
    texts: Prompts,
    hook: str,
    *,
    skip: int = 1,
    batch: int = 32,
    longest: float = 5.0,
) -> Float[Tensor, "token d_in"]:
    """What an activation is at every token, one row each: what a dictionary is trained on.

    Left out: the first `skip` positions (the attention sink), and rows more than `longest` times as long as
    the median row, which are a handful and would fill the whole loss.
    """
    layer, seen = _layer_read(model, hook), []
    for rows in texts_of(model, texts).split(batch):
        _, cache = model.run_with_cache(rows, names_filter=hook, stop_at_layer=layer + 1)
        seen.append(cache[hook][:, skip:].flatten(0, 1))
    found = torch.cat(seen)
    length = found.float().norm(dim=1)
    return made_from(found[length < longest * length.median()], Origin.of(model))


@dataclass(frozen=True)
class Splice:
    """What the model loses when the dictionary's reconstruction stands in for the activation.

    loss: next-token loss (nats) for "intact", "spliced", "mean" (the activation's mean instead) and "zero"
    recovered: (mean − spliced) / (mean − intact): 1 is no loss. Against zero ablation the same number
               flatters
    unexplained: share of the variance that is not rebuilt; active: features active a token; silent: share
                 never active
    of_text: the four losses, the squared "error" and the "variance" (squared distances from the mean), each
             the mean over the tokens of one text: [text]
    """

    loss: dict[str, float]
    recovered: float
    unexplained: float
    active: float
    silent: float
    of_text: Mapping[str, Float[Tensor, "text"]] = field(default_factory=dict, repr=False)

    def intervals(self) -> dict[str, Estimate]:
        """Both shares with their 95 % intervals over texts; no interval for fewer than eight of them."""
        of = self.of_text
        shares = {"recovered": (of["mean"] - of["spliced"], of["mean"] - of["intact"])}
        shares["unexplained"] = (of["error"], of["variance"])
        few = None if len(of["error"]) >= FEWEST_UNITS else torch.zeros(len(of["error"])).long()
        return {name: estimate(part, few, over=whole) for name, (part, whole) in shares.items()}

    def __repr__(self) -> str:
        loss = "loss {intact:.2f}, spliced {spliced:.2f}, mean {mean:.2f}, zero {zero:.2f}".format(
            **self.loss
        )
        shares = self.intervals()
        return (
            f"{loss}; recovered {shares['recovered']} of what the mean loses; unexplained variance "
            f"{shares['unexplained']}; {self.active:.1f} features active; {self.silent:.1%} silent"
        )


@torch.inference_mode(False)
@torch.no_grad()
def splice(
    model: "TransformerBridge",
    sae: SparseAutoencoder,
    texts: Prompts,
    *,
    skip: int = 1,
    beside: Splice | None = None,
) -> Splice:
    """Put the reconstruction in the place of the activation, and measure the loss.

    At all positions but the first `skip`. Reconstruction can look good and behaviour not be preserved: what
    is missing may be what the model reads.
    beside: an earlier result for the same activation and texts, whose intact, mean and zero losses are used
    again (a third of the time).
    """
    name, seen = hook_of(model, sae), []
    texts, sae = texts_of(model, texts), sae.to(model.W_E.device)
    if texts.shape[1] < skip + 2:
        raise ValueError(
            f"The texts have {texts.shape[1]} tokens; a next-token loss needs at least {skip + 2}."
        )
    if beside is not None and len(beside.of_text["intact"]) != len(texts):
        raise ValueError(f"beside is of {len(beside.of_text['intact'])} texts, and these are {len(texts)}.")
    loss = {} if beside is None else {k: beside.of_text[k] for k in ("intact", "mean", "zero")}
    with intervene(model, [(name, lambda x, hook: seen.append(x[:, skip:]))]):
        if beside is None:
            loss["intact"] = _loss(model, texts, skip)
        else:
            model(texts, stop_at_layer=layer_of(name) + 1)
    x = torch.cat(seen).to(torch.promote_types(seen[0].dtype, torch.float32))
    features, mean = sae.encode(x), x.flatten(0, 1).mean(0)
    back = sae.decode(features)
    instead = {"mean": mean.expand_as(x), "zero": torch.zeros_like(x)} if beside is None else {}
    for what, value in {"spliced": back, **instead}.items():
        with intervene(model, _from(name, value, skip)):
            loss[what] = _loss(model, texts, skip)
    whole = {what: each.mean().item() for what, each in loss.items()}
    lost = whole["mean"] - whole["intact"]
    if abs(lost) < 1e-6 * abs(whole["intact"]):
        raise ValueError(f"The model loses nothing when {name} is its mean, so no share is recovered.")
    squares = {"error": x - back, "variance": x - mean}
    squares = {what: each.pow(2).sum(-1).mean(1) for what, each in squares.items()}
    return Splice(
        whole,
        (whole["mean"] - whole["spliced"]) / lost,
        (squares["error"].sum() / squares["variance"].sum()).item(),
        (features > 0).float().sum(-1).mean().item(),
        (features.flatten(0, 1) > 0).any(0).logical_not().float().mean().item(),
        {what: each.cpu() for what, each in {**loss, **squares}.items()},
    )


def _loss(model: "TransformerBridge", texts: Int[Tensor, "batch pos"], skip: int) -> Float[Tensor, "batch"]:
    """The mean next-token loss of each text after the first `skip` positions, in nats."""
    if torch.finfo(model.W_E.dtype).bits >= 32:
        return model(texts, return_type="loss", loss_per_token=True)[:, skip:].mean(1)
    said = model(texts)[:, skip:-1].float().log_softmax(-1)  # half precision would round each token's loss
    return -said.gather(-1, texts[:, skip + 1 :, None].to(said.device)).mean((1, 2))


def splice_hooks(model: "TransformerBridge", sae: SparseAutoencoder, *, skip: int = 1) -> list[Hook]:
    """Put the reconstruction in the place of the activation, at all positions but the first `skip`."""
    sae = sae.to(model.W_E.device)

    def write(x: Float[Tensor, "batch pos d_in"], hook) -> Float[Tensor, "batch pos d_in"]:
        return torch.cat([x[:, :skip], sae.decode(sae.encode(x[:, skip:])).to(x)], dim=1)

    return [(hook_of(model, sae), write)]


def _from(name: str, value: Float[Tensor, "batch pos d_in"], skip: int) -> list[Hook]:
    """Write `value` over an activation at all positions but the first `skip`."""
    return [(name, lambda x, hook: torch.cat([x[:, :skip], value.to(x)], dim=1))]


def hook_of(model: "TransformerBridge", sae: SparseAutoencoder) -> str:
    """The activation that the dictionary reads; an error where this model has none such."""
    if not sae.hook:
        raise ValueError(
            'This dictionary does not say which activation it reads: load it with hook="blocks....".'
        )
    _layer_read(model, sae.hook)
    if sae.origin is not None:
        sae.origin.check(model, "This dictionary")
    return sae.hook


def _layer_read(model: "TransformerBridge", hook: str) -> int:
    """The layer of an activation; one with an axis of heads, or outside the blocks, is refused."""
    check_name(model, hook)
    if not hook.startswith("blocks.") or hook.split(".")[-1] in WITH_HEADS:
        raise ValueError(
            f"{hook} is no activation [batch, pos, width] of a block (it has an axis of heads, or stands "
            "outside the blocks), so a dictionary cannot read it here."
        )
    return layer_of(hook)
