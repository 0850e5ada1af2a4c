"""ROME: edit one fact by a rank-one change of one MLP's output matrix (Meng et al. 2022, section 3).

The matrix W_out is read as a memory: a key (what the MLP's neurons do at the subject's last token) brings
back a value (what the MLP writes there). The edit makes the fact's key bring back a new value, found by
gradient descent so that the model says the new answer, and disturbs other keys as little as possible, as
measured by the covariance of keys:

    W ← W + (C⁻¹ k) (v* − k W)ᵀ / (k · C⁻¹ k)

Easy to get wrong: an edit that works says nothing about where the fact is stored (Hase et al. 2023);
consequences do not follow; a question about a neighbour may be answered with the new answer; edits pile up.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import check_layer
from mechlab.intervention.edits import WeightEdit
from mechlab.loading.files import check_shapes, read_names, read_tensors
from mechlab.loading.origin import Origin, made_from, origin_of
from mechlab.moved import was
from mechlab.prompts import PromptError, single_token
from mechlab.runs.engines import run_of
from mechlab.runs.places import word_positions
from mechlab.runs.run import Put
from mechlab.text import own_text
from mechlab.tokens import Prompts, texts_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Prefixes = Int[Tensor, "prefix pos"] | None  # beginnings of texts, the model's first token included


@dataclass(frozen=True)
class Fact:
    """A fact to be written: the prompt with {} for the subject, the subject, and the new answer.

    The answer has its leading space.
    """

    prompt: str
    subject: str
    answer: str

    def __post_init__(self):
        if self.prompt.count("{}") != 1:
            raise PromptError(f"The prompt must hold {{}} once, for the subject: {self.prompt!r}")
        if not self.subject.strip():
            raise PromptError(
                f"The subject {self.subject!r} is empty: there is no place to write the fact at."
            )
        if not self.answer.strip():
            raise PromptError(f"The answer {self.answer!r} is empty: there is nothing to write.")

    @property
    def text(self) -> str:
        return self.prompt.replace("{}", self.subject)


@was("model", "layer", "base", when=lambda args: isinstance(args[1:] and args[1], int), texts="base")
@torch.inference_mode(False)
@torch.no_grad()
def key_covariance(
    model: "TransformerBridge", base: Prompts, *, layer: int, skip: int = 1, batch: int = 16
) -> Float[Tensor, "d_mlp d_mlp"]:
    """C = E[k kᵀ] of what the neurons of one MLP do on ordinary text.

    The first `skip` positions are left out. Summed in float64. Raises a `ValueError` where the layer has no
    one output matrix of its MLP (experts), or there is nothing to average.
    """
    W_out = _output_matrix(model, layer)
    name, count = f"blocks.{layer}.mlp.hook_post", 0
    total = torch.zeros(len(W_out), len(W_out), dtype=torch.float64)
    for rows in texts_of(model, base, what="base").split(batch):
        _, cache = model.run_with_cache(rows, names_filter=name, stop_at_layer=layer + 1)
        keys = cache[name][:, skip:].flatten(0, 1).cpu().double()
        total, count = total + keys.T @ keys, count + len(keys)
    if not count or not torch.isfinite(total).all():
        reason = "NaN or infinite activations" if count else f"no tokens behind the first {skip} positions"
        raise ValueError(f"There are {reason} in these texts: they have no covariance.")
    return made_from((total / count).float(), Origin.of(model))


def save_covariance(path: str | os.PathLike, covariance: Float[Tensor, "d_mlp d_mlp"]) -> None:
    """As correlations in float16 and one scale for each neuron: the upper triangle only.

    What `key_covariance` made is stored with its model, so that `edit_fact` refuses it for another one.
    """
    from safetensors.torch import save_file

    origin, covariance = origin_of(covariance), covariance.detach().float().cpu()
    scale = covariance.diagonal().sqrt()
    divisor = torch.where(scale > 0, scale, 1)  # a neuron that is never active
    upper = (covariance / torch.outer(divisor, divisor))[tuple(torch.triu_indices(*covariance.shape))]
    notes = None if origin is None else {"origin": origin.text()}
    save_file({"scale": scale, "upper": upper.half()}, path, notes)


def load_covariance(path: str | os.PathLike) -> Float[Tensor, "d_mlp d_mlp"]:
    """A covariance that `save_covariance` wrote. Raises `ValueError` for any other file."""
    found = read_tensors(path, "a covariance", needs=("scale", "upper"))
    size = found["scale"].numel()
    check_shapes(path, found, {"scale": (size,), "upper": (size * (size + 1) // 2,)})
    scale, upper = found["scale"].float(), found["upper"].float()
    full = torch.zeros(size, size)
    row, column = torch.triu_indices(*full.shape)
    full[row, column] = full[column, row] = upper
    return made_from(full * torch.outer(scale, scale), Origin.read(read_names(path).get("origin")))


@torch.inference_mode(False)
def edit_fact(
    model: "TransformerBridge",
    fact: Fact,
    layer: int,
    covariance: Float[Tensor, "d_mlp d_mlp"],
    *,
    prefixes: Prefixes = None,
    ridge: float = 0.01,
    steps: int = 25,
    rate: float = 0.5,
    decay: float = 0.05,
    kl: float = 0.0625,
    clamp: float = 4.0,
) -> WeightEdit:
    """Write one fact into the MLP of `layer`. The model is changed until `.undo()`; several edits add up.

    covariance: of the layer's keys on ordinary text (`key_covariance`); the identity gives the cheap version
    prefixes:   beginnings, so that key and value do not hang on one context (default: six of the model's own
                texts)
    ridge:      added to the covariance's diagonal, in shares of its mean
    steps, rate, decay, kl, clamp: of the search for the value (`fact_value`)
    """
    W_out = _output_matrix(model, layer)
    spread = _spread(model, covariance, len(W_out), ridge)
    key, written = fact_key(model, fact, layer, prefixes)
    value = fact_value(model, fact, layer, prefixes, steps=steps, rate=rate, decay=decay, kl=kl, clamp=clamp)
    change = (value - written).double()
    direction = torch.linalg.solve(spread, key.double().cpu()).to(change)
    edit = WeightEdit(model, f"{fact.text} →{fact.answer}, layer {layer}")
    with edit.whole():
        edit.change(W_out, W_out.double() + torch.outer(direction, change) / (key.double() @ direction))
        _check_written(model, fact_key(model, fact, layer, prefixes)[1], value, change)
    return edit


def _spread(
    model: "TransformerBridge", covariance: Float[Tensor, "_ _"], neurons: int, ridge: float
) -> Float[Tensor, "d_mlp d_mlp"]:
    """The covariance with the ridge on its diagonal; one that does not fit the model is refused."""
    if tuple(covariance.shape) != (neurons, neurons):
        raise ValueError(
            f"The covariance is {tuple(covariance.shape)}; the MLP of this model has {neurons} neurons."
        )
    origin, covariance = origin_of(covariance), covariance.detach().double().cpu()
    if origin is not None:
        origin.check(model, "This covariance")
    mean = covariance.diagonal().mean()
    if not torch.isfinite(covariance).all() or not mean > 0:
        raise ValueError(
            "The covariance is zero, or has NaN or infinite numbers: no key can be told from others."
        )
    return covariance + ridge * mean * torch.eye(neurons, dtype=torch.float64)


def _output_matrix(model: "TransformerBridge", layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The matrix that is read as a memory; a `ValueError` where the layer has none such."""
    block = model.blocks[check_layer(model, layer)]
    mlp = getattr(block, "mlp", None)
    W_out = getattr(mlp, "W_out", None)
    if (
        not isinstance(W_out, Tensor)
        or W_out.ndim != 2
        or f"blocks.{layer}.mlp.hook_post" not in model.hook_dict
    ):
        raise ValueError(
            f"Layer {layer} of this model has no one output matrix of its MLP ({type(mlp).__name__}; a "
            "layer of experts has one for each), so a fact cannot be written there."
        )
    if getattr(block, "ln2_post", None) is not None:
        raise ValueError(
            f"In layer {layer} of this model a norm stands between the MLP's output matrix and the stream, "
            "so no change of the matrix writes a value of a chosen size; a fact cannot be written there."
        )
    return W_out.detach()


def _check_written(
    model: "TransformerBridge", now: Float[Tensor, "d_model"], value: Tensor, change: Tensor
) -> None:
    """Raise a `ValueError` unless the MLP writes the value now, as precisely as the model computes."""
    off = (now.double() - value.double()).norm()
    rounding = 8 * torch.finfo(model.W_E.dtype).eps * value.double().norm()
    if not off <= 0.05 * change.norm() + rounding:
        raise ValueError(
            f"After the edit the MLP writes something else than the value (off by {off:.2g}; the change is "
            f"{change.norm():.2g} long): this model does more with its MLP than the edit "
            "knows. Nothing was changed."
        )


@torch.inference_mode(False)
@torch.no_grad()
def fact_key(
    model: "TransformerBridge", fact: Fact, layer: int, prefixes: Prefixes = None
) -> tuple[Float[Tensor, "d_mlp"], Float[Tensor, "d_model"]]:
    """k: what the neurons do at the subject's last token; and what the MLP writes there.

    Both are the mean over prefixes and none.
    """
    _output_matrix(model, layer)
    post, out = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_mlp_out"
    keys, written = [], []
    for tokens, place in _contexts(model, fact, prefixes):
        _, cache = model.run_with_cache(tokens, names_filter=[post, out], stop_at_layer=layer + 1)
        keys.append(cache[post][:, place])
        written.append(cache[out][:, place])
    mean = lambda found: _precise(torch.cat(found)).mean(0)
    return mean(keys), mean(written)


@torch.inference_mode(False)
@torch.enable_grad()
def fact_value(
    model: "TransformerBridge",
    fact: Fact,
    layer: int,
    prefixes: Prefixes = None,
    *,
    steps: int = 25,
    rate: float = 0.5,
    decay: float = 0.05,
    kl: float = 0.0625,
    clamp: float = 4.0,
) -> Float[Tensor, "d_model"]:
    """v*: what the MLP should write at the subject's last token.

    It is chosen so that the model goes on with the new answer.

    Minimises −log p(answer), averaged over contexts, plus `kl` times the change of what the model says after
    "{subject} is a", plus `decay` times the squared size; no further than `clamp` times what the MLP writes
    now. Stops early once the new answer has probability .9. An answer of several tokens is asked for token by
    token.
    """
    answer = model.to_tokens(fact.answer, prepend_bos=False)[0]
    asked = len(answer) + 1  # the last positions: the one before each token of the answer, and the end
    runs = [
        _later(model, tokens, place, layer, asked)
        for tokens, place in _contexts(model, fact, prefixes, answer)
    ]
    ((bare, place),) = _contexts(model, Fact("{} is a", fact.subject, fact.answer), bare=True)
    essence = _later(model, bare, place, layer, 1)
    _, now = fact_key(model, fact, layer, prefixes)
    delta = torch.zeros_like(now, requires_grad=True)
    before = essence(delta)[0, -1].detach()
    optimizer = torch.optim.Adam([delta], lr=rate)
    for _ in range(steps):
        said = torch.cat([run(delta)[:, :-1] for run in runs])
        told = said.gather(-1, answer.expand(len(said), -1)[..., None]).sum((1, 2))
        if told.exp().mean() > 0.9:
            break
        after = essence(delta)[0, -1]
        drift = (before.exp() * (before - after)).sum()
        loss = -told.mean() + kl * drift + decay * (delta.norm() / now.norm()) ** 2
        optimizer.zero_grad()
        (delta.grad,) = torch.autograd.grad(loss, [delta])  # the weights gather no gradients
        optimizer.step()
        with torch.no_grad():
            delta *= min(1.0, (clamp * now.norm() / delta.norm().clamp(min=1e-9)).item())
    return (now + delta).detach()


@torch.no_grad()
def edit_scores(
    model: "TransformerBridge",
    fact: Fact,
    old: str,
    paraphrases: Sequence[str],
    neighbours: Mapping[str, str],
) -> dict[str, float]:
    """How an edited model answers, all shares from 0 to 1.

    probability:   of the new answer
    efficacy:      it is likelier than the old one
    paraphrase:    so it is in other words ({} for the subject)
    neighbourhood: for prompts about other subjects, each with its own answer, that answer is likelier than
                   the new one
    kept:          it is still the likeliest of all

    The paper's neighbourhood (CounterFact) asks for subjects with the same old answer, other things in Paris
    when the Eiffel Tower is moved. Subjects with other answers are easier: that is another number.
    """
    new, before = single_token(model, fact.answer), single_token(model, old)
    wrong = [prompt for prompt in paraphrases if prompt.count("{}") != 1]
    if wrong or not paraphrases or not neighbours:
        what = (
            f"The paraphrase {wrong[0]!r} must hold {{}} once"
            if wrong
            else "There are no paraphrases or neighbours"
        )
        raise PromptError(f"{what}: each share is of several prompts about this subject, and about others.")
    said = lambda prompt: _precise(model(prompt)[0, -1]).softmax(-1)
    asked = said(fact.text)
    told = [said(prompt.replace("{}", fact.subject)) for prompt in paraphrases]
    others = [(said(prompt), single_token(model, answer)) for prompt, answer in neighbours.items()]
    share = lambda found: sum(map(bool, found)) / len(found)
    return {
        "probability": asked[new].item(),
        "efficacy": float(asked[new] > asked[before]),
        "paraphrase": share([p[new] > p[before] for p in told]),
        "neighbourhood": share([p[own] > p[new] for p, own in others]),
        "kept": share([p.argmax() == own for p, own in others]),
    }


def _contexts(
    model: "TransformerBridge",
    fact: Fact,
    prefixes: Prefixes = None,
    answer: Tensor | None = None,
    *,
    bare: bool = False,
) -> Iterator[tuple[Int[Tensor, "context pos"], int]]:
    """The prompt alone, and after each prefix: tokens, and the place of the subject's last token."""
    tokens = model.to_tokens(fact.text)
    start = fact.prompt.index("{}")
    place = word_positions(model, fact.text, start, start + len(fact.subject))[-1]
    begin = tokens.shape[1] - model.to_tokens(fact.text, prepend_bos=False).shape[1]  # the model's own tokens
    tail = tokens[:, begin:] if answer is None else torch.cat([tokens[:, begin:], answer[None]], dim=1)
    yield torch.cat([tokens[:, :begin], tail], dim=1), place
    if bare:
        return
    before = own_text(model, length=11, count=6) if prefixes is None else prefixes
    if before.shape[0]:
        before = before.to(tokens.device).clone()  # one that was made in inference mode would stop the search
        yield torch.cat([before, tail.expand(len(before), -1)], dim=1), place + before.shape[1] - begin


def _later(
    model: "TransformerBridge", tokens: Int[Tensor, "context pos"], place: int, layer: int, asked: int
) -> Callable[[Tensor], Float[Tensor, "context asked d_vocab"]]:
    """From a vector added to what the MLP writes to log-probabilities.

    The vector is added at `place`, and the log-probabilities are at the last `asked` positions.
    """
    with torch.no_grad():
        run = run_of(model, tokens)
        written = run.at("mlp_out", layer)[None]
    where = torch.arange(tokens.shape[1], device=tokens.device)[None, None] == place
    put = lambda delta: [Put("mlp_out", layer, written + delta, where)]
    return lambda delta: _precise(run.logits(put(delta), asked)).log_softmax(-1)


def _precise(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32 or better."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
