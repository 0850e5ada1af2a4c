"""ROME: edit one fact by a rank-one change of one MLP's output matrix (Meng et al. 2022, section 3).

The matrix W_out is read as a memory: a key (what the MLP's neurons do at the subject's last token) brings back a value
(what the MLP writes there). The edit makes the fact's key bring back a new value, found by gradient descent so that the
model says the new answer, and disturbs other keys as little as possible, as measured by the covariance of keys:

    W ← W + (C⁻¹ k) (v* − k W)ᵀ / (k · C⁻¹ k)

Easy to get wrong: an edit that works says nothing about where the fact is stored (Hase et al. 2023); consequences do not
follow; a question about a neighbour may be answered with the new answer; edits pile up.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.hooks import intervene
from mechlab.intervention.tracing import subject_positions
from mechlab.intervention.weights import WeightEdit
from mechlab.prompts import PromptError

# What is put before the prompt, so that the key and the value do not hang on one context.
PREFIXES = (
    "",
    "Yesterday, I read this. ",
    "It is well known. ",
    "And so she wrote: ",
    "Here is what we found. ",
)


@dataclass(frozen=True)
class Fact:
    """A fact to be written: the prompt with {} for the subject, the subject, and the new answer with its leading space."""

    prompt: str
    subject: str
    answer: str

    def __post_init__(self):
        if self.prompt.count("{}") != 1:
            raise PromptError(f"The prompt must hold {{}} once, for the subject: {self.prompt!r}")

    @property
    def text(self) -> str:
        return self.prompt.format(self.subject)


def key_covariance(
    model, layer: int, texts: Int[Tensor, "text pos"], *, skip: int = 1, batch: int = 16
) -> Float[Tensor, "d_mlp d_mlp"]:
    """C = E[k kᵀ] of what the neurons of one MLP do on ordinary text; the first `skip` positions are left out."""
    name, total, count = f"blocks.{layer}.mlp.hook_post", 0.0, 0
    with torch.no_grad():
        for rows in texts.split(batch):
            _, cache = model.run_with_cache(rows, names_filter=name, stop_at_layer=layer + 1)
            keys = cache[name][:, skip:].flatten(0, 1).double()
            total, count = total + keys.T @ keys, count + len(keys)
    return (total / count).float()


def save_covariance(path: str | os.PathLike, covariance: Float[Tensor, "d_mlp d_mlp"]) -> None:
    """As correlations in float16 and one scale for each neuron: the upper triangle only."""
    from safetensors.torch import save_file

    scale = covariance.diagonal().sqrt()
    upper = (covariance / torch.outer(scale, scale))[tuple(torch.triu_indices(*covariance.shape))]
    save_file({"scale": scale, "upper": upper.half()}, path)


def load_covariance(path: str | os.PathLike) -> Float[Tensor, "d_mlp d_mlp"]:
    """A covariance that `save_covariance` wrote."""
    from safetensors.torch import load_file

    found = load_file(path)
    scale, upper = found["scale"], found["upper"].float()
    full = torch.zeros(len(scale), len(scale))
    row, column = torch.triu_indices(*full.shape)
    full[row, column] = full[column, row] = upper
    return full * torch.outer(scale, scale)


def edit_fact(
    model,
    fact: Fact,
    layer: int,
    covariance: Float[Tensor, "d_mlp d_mlp"],
    *,
    prefixes: Sequence[str] = PREFIXES,
    steps: int = 25,
    rate: float = 0.5,
    ridge: float = 0.01,
) -> WeightEdit:
    """Write one fact into the MLP of `layer`. The model is changed until `.undo()`; several edits add up.

    covariance: of the layer's keys on ordinary text (`key_covariance`); the identity gives the cheap version
    steps:      of gradient descent (Adam) for the value; it stops early once the new answer has probability .9
    ridge:      added to the covariance's diagonal, in shares of its mean
    """
    _check(model, layer, covariance)
    key, written = fact_key(model, fact, layer, prefixes)
    change = fact_value(model, fact, layer, prefixes, steps=steps, rate=rate) - written
    spread = covariance.double() + ridge * covariance.double().diagonal().mean() * torch.eye(len(covariance))
    direction = torch.linalg.solve(spread, key.double().cpu()).to(key)
    update = torch.outer(direction, change) / (key @ direction)
    edit = WeightEdit(model, f"{fact.text} →{fact.answer}, layer {layer}")
    W_out = model.blocks[layer].mlp.W_out
    edit.change(W_out, W_out.detach() + update)
    return edit


@torch.no_grad()
def fact_key(
    model, fact: Fact, layer: int, prefixes: Sequence[str] = PREFIXES
) -> tuple[Float[Tensor, "d_mlp"], Float[Tensor, "d_model"]]:
    """k: what the neurons do at the subject's last token, the mean over prefixes; and what the MLP writes there."""
    post, out = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_mlp_out"
    keys, written = [], []
    for prefix in prefixes:
        tokens, place = _placed(model, prefix, fact)
        _, cache = model.run_with_cache(tokens, names_filter=[post, out], stop_at_layer=layer + 1)
        keys.append(cache[post][0, place])
        written.append(cache[out][0, place])
    return torch.stack(keys).mean(0), torch.stack(written).mean(0)


def fact_value(
    model,
    fact: Fact,
    layer: int,
    prefixes: Sequence[str] = PREFIXES,
    *,
    steps: int = 25,
    rate: float = 0.5,
    decay: float = 0.05,
    kl: float = 0.0625,
    clamp: float = 4.0,
) -> Float[Tensor, "d_model"]:
    """v*: what the MLP should write at the subject's last token, so that the model goes on with the new answer.

    Minimises −log p(answer), averaged over prefixes, plus `kl` times the change of what the model says after
    "{subject} is a", plus `decay` times the size; no further than `clamp` times what the MLP writes now.
    """
    runs = [_placed(model, prefix, fact, fact.answer) for prefix in prefixes]
    essence = _placed(model, "", Fact("{} is a", fact.subject, fact.answer))
    answer = model.to_tokens(fact.answer, prepend_bos=False)[0]
    name = f"blocks.{layer}.hook_mlp_out"
    with torch.no_grad():
        _, now = fact_key(model, fact, layer, prefixes)
        before = model(essence[0])[0, -1].log_softmax(-1)
    delta = torch.zeros_like(now, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=rate)

    def log_probs(tokens: Tensor, place: int) -> Float[Tensor, "pos d_vocab"]:
        at = torch.zeros(tokens.shape[1], 1, device=tokens.device)
        at[place] = 1.0
        with intervene(model, [(name, lambda x, hook: x + at * delta)]):
            return model(tokens)[0].log_softmax(-1)

    for _ in range(steps):
        said = [log_probs(tokens, place)[-len(answer) - 1 : -1] for tokens, place in runs]
        told = torch.stack([rows.gather(-1, answer[:, None]).sum() for rows in said])
        after = log_probs(*essence)[-1]
        drift = (before.exp() * (before - after)).sum()
        loss = -told.mean() + kl * drift + decay * (delta.norm() / now.norm()) ** 2
        if told.exp().mean() > 0.9:
            break
        optimizer.zero_grad()
        (delta.grad,) = torch.autograd.grad(loss, [delta])  # the weights gather no gradients
        optimizer.step()
        with torch.no_grad():
            delta *= min(1.0, (clamp * now.norm() / delta.norm().clamp(min=1e-9)).item())
    return (now + delta).detach()


def _placed(model, prefix: str, fact: Fact, answer: str = "") -> tuple[Int[Tensor, "1 pos"], int]:
    """The prompt after a prefix, its tokens followed by the answer's, and the place of the subject's last token."""
    text = prefix + fact.text
    tokens = model.to_tokens(text)
    if answer:
        tokens = torch.cat([tokens, model.to_tokens(answer, prepend_bos=False)], dim=1)
    return tokens, subject_positions(model, text, fact.subject)[-1]


def _check(model, layer: int, covariance: Tensor) -> None:
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"There is no layer {layer}: the model has layers 0 to {model.cfg.n_layers - 1}.")
    if tuple(covariance.shape) != (model.cfg.d_mlp, model.cfg.d_mlp):
        raise ValueError(
            f"The covariance is {tuple(covariance.shape)}; the MLP of this model has {model.cfg.d_mlp} neurons."
        )
