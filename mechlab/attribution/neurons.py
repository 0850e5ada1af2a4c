"""Which neurons wrote the answer, which neurons switched those on, and does the model need them?

An MLP neuron is a key and a value (Geva et al. 2021): its columns of the input matrices say when it is
active, its row of W_out is what it then adds to the residual stream. Scores here are read at one position of
prompts that end before the answer. A high score says that a neuron pushed; only `knock_out` says that it was
needed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import check_layer, layer_of
from mechlab.loading.models import require_folded
from mechlab.metrics import Metric, per_prompt
from mechlab.moved import was
from mechlab.prompts import Answers, answer_ids
from mechlab.results import AblationResult, Scores
from mechlab.runs.caching import only
from mechlab.runs.hooks import Hook, intervene

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge

Neuron = tuple[int, int]  # (layer, neuron): L24N1005 in text
EXACT = 128  # neurons of a layer whose score is computed exactly
LIKELY = 256  # tokens that the estimate for the others looks at


@torch.no_grad()
def value_tokens(model: "TransformerBridge", neuron: Neuron, k: int = 10) -> "pd.DataFrame":
    """The tokens whose logits a neuron raises and lowers most: its value through the unembedding.

    In logits for an activation of 1, before the last norm divides. A neuron with a negative activation does
    the opposite. Geva et al. 2022. In early layers the lists mean little: what is written there is read by
    other layers.
    """
    import pandas as pd

    layer, index = _checked(model, neuron)
    effect = model.blocks[layer].mlp.W_out[index] @ model.W_U
    best, worst = effect.topk(k), (-effect).topk(k)
    text = lambda ids: [model.to_string([i]) for i in ids.tolist()]
    columns = {"raises": text(best.indices), "logits": best.values.tolist()}
    columns |= {"lowers": text(worst.indices), "logits ": (-worst.values).tolist()}
    return pd.DataFrame(columns).round(2)


@was(position="pos")
@torch.no_grad()
def value_neuron_scores(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    answers: Answers,
    *,
    layers: Sequence[int] | None = None,
    hooks: Sequence[Hook] = (),
    pos: int = -1,
) -> Scores:
    """How much each MLP neuron raises the log-probability of the answer, read from its layer, in nats.

    log p(answer | stream before the MLP + what the neuron writes) − log p(answer | stream before the MLP),
    with the last norm's scale held at its value: the score of Yu and Ananiadou 2024. dims ("layer",
    "neuron"); layers that are not asked for score 0. The score ignores what later layers make of the neuron.
    `hooks` are put on the model first: an intervention to compare with.

    Computed exactly for the 128 neurons of a layer that write most, and to second order for the others, which
    hardly move any logit (within 0.005 nats on six prompts of SmolLM2): a tenth of the work.
    """
    require_folded(model)
    chosen = range(model.cfg.n_layers) if layers is None else [check_layer(model, layer) for layer in layers]
    right = answer_ids(model, answers, len(base))
    names = only("hook_resid_mid", "mlp.hook_post", "ln_final.hook_scale")
    with intervene(model, hooks):
        _, cache = model.run_with_cache(base, names_filter=names)
    scale = cache["ln_final.hook_scale"][:, pos]
    scores = torch.zeros(len(base), model.cfg.n_layers, _width(model), device=model.cfg.device)
    for layer in chosen:
        before = _readout(model, cache["resid_mid", layer][:, pos]) / scale @ model.W_U + model.b_U
        active = cache["post", layer][:, pos] / scale
        written = _readout(model, model.blocks[layer].mlp.W_out)
        for row, answer in enumerate(right.tolist()):
            scores[row, layer] = _raised(model, before[row], active[row], written, answer)
    return Scores.over_prompts(scores, ("layer", "neuron"), "log-probability increase (nats)")


def _raised(
    model: "TransformerBridge",
    before: Float[Tensor, "d_vocab"],
    active: Float[Tensor, "neuron"],
    written: Float[Tensor, "neuron d_model"],
    answer: int,
) -> Float[Tensor, "neuron"]:
    """How much each neuron of a layer adds to the answer's log-probability, on top of the logits `before`."""
    log_p = before.log_softmax(-1)
    p, likely = log_p.exp().topk(min(LIKELY, model.cfg.d_vocab))
    slope = model.W_U[:, answer] - model.W_U @ log_p.exp()  # of the answer's log-probability
    raised = written @ model.W_U[:, likely]  # [neuron, likely token]
    curve = raised.pow(2) @ p - (raised @ p).pow(2)  # minus the curvature: a variance under p
    scores = active * (written @ slope) - 0.5 * active.pow(2) * curve
    loud = (active.abs() * written.norm(dim=-1)).topk(min(EXACT, len(active))).indices
    after = before + active[loud, None] * (written[loud] @ model.W_U)  # [neuron, d_vocab]
    scores[loud] = after[:, answer] - after.logsumexp(-1) - log_p[answer]
    return scores


def comparative_neuron_scores(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    answers: Answers,
    hooks: Sequence[Hook],
    **options,
) -> Scores:
    """What an intervention takes from each neuron's score: the score without it minus with it, in nats.

    Comparative neuron analysis (Yu and Ananiadou 2024, arithmetic): which neurons does a head, say, speak
    through? `options` go to `value_neuron_scores`.
    """
    plain = value_neuron_scores(model, base, answers, **options)
    changed = value_neuron_scores(model, base, answers, hooks=hooks, **options)
    lost = plain.per_prompt - changed.per_prompt
    return Scores.over_prompts(lost, plain.dims, "log-probability increase lost (nats)")


@was(position="pos")
@torch.no_grad()
def query_neuron_scores(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    value_neurons: Sequence[Neuron],
    importance: Sequence[float],
    *,
    row: str = "gate",
    pos: int = -1,
) -> Scores:
    """Which earlier MLP neurons switched the value neurons on, at the same position.

    A value neuron's input column is its key: what earlier neurons wrote, times the key, is their share of its
    pre-activation. Scores are shares, weighted by the value neurons' `importance` and summed, so they have
    its unit. Yu and Ananiadou 2024. A gated MLP has two keys, silu(gate) · in, and no single inner product:
    choose `row="gate"` (whether the neuron opens) or "in" (how much passes, and its sign), and say which.
    GPT-2 has "in" only.
    """
    if row not in ("gate", "in") or (row == "gate" and not model.cfg.gated_mlp):
        raise ValueError(
            f"row is {row!r}; this model has {'gate and in' if model.cfg.gated_mlp else 'only in'}."
        )
    require_folded(model)
    _, cache = model.run_with_cache(base, names_filter=only("hook_resid_mid", "mlp.hook_post"))
    scores = torch.zeros(len(base), model.cfg.n_layers, _width(model))
    for (layer, index), weight in zip(value_neurons, importance, strict=True):
        layer, index = _checked(model, (layer, index))
        mlp = model.blocks[layer].mlp
        key = (mlp.W_gate if row == "gate" else mlp.W_in)[:, index]
        total = _readout(model, cache["resid_mid", layer][:, pos]) @ key  # [batch]
        for earlier in range(layer):
            read = _readout(model, model.blocks[earlier].mlp.W_out) @ key  # [neuron]
            written = cache["post", earlier][:, pos] * read
            scores[:, earlier] += (weight * written / total[:, None]).cpu()
    return Scores.over_prompts(scores, ("layer", "neuron"), f"share of the value neurons' {row} (nats)")


@was(position="pos")
@torch.no_grad()
def ablate_neurons(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    metric: Metric,
    neurons: Sequence[Neuron],
    *,
    pos: int | None = None,
    draws: int = 10,
    seed: int = 0,
) -> AblationResult:
    """Set neurons to zero, at one position or everywhere, and compare with random neurons of the same layers.

    Each random neuron is of the same layer as the one it stands for, and one of the 20 nearest to it in how
    much it writes (|activation| times length of its row of W_out). Where the chosen are the loudest of their
    layer, the
    random ones are quieter: then silence the loudest others too.
    Neurons chosen and tested on the same prompts look better than they are on others.
    """
    neurons = [_checked(model, neuron) for neuron in neurons]
    logits, cache = model.run_with_cache(base, names_filter=only("mlp.hook_post"))
    places = slice(None) if pos is None else pos
    generator = torch.Generator().manual_seed(seed)
    draw = [_matched(model, cache, neurons, places, generator) for _ in range(draws)]
    run = lambda chosen: per_prompt(metric, _without(model, base, chosen, places)).cpu()
    random = torch.stack([run(chosen) for chosen in draw])
    return AblationResult(per_prompt(metric, logits).cpu(), run(neurons), random)


def _matched(
    model: "TransformerBridge",
    cache: "ActivationCache",
    neurons: Sequence[Neuron],
    places: slice | int,
    generator: torch.Generator,
) -> list[Neuron]:
    """For each neuron another one of its layer, about as loud."""
    taken, drawn = set(neurons), []
    for layer, index in neurons:
        active = cache["post", layer][:, places].abs().flatten(0, -2).mean(0)
        loud = active * model.blocks[layer].mlp.W_out.norm(dim=-1)
        near = [n for n in (loud - loud[index]).abs().argsort().tolist() if (layer, n) not in taken][:20]
        if not near:
            raise ValueError(
                f"Every neuron of layer {layer} is chosen, so there is no other to compare with."
            )
        drawn.append((layer, near[int(torch.randint(len(near), (1,), generator=generator))]))
        taken.add(drawn[-1])
    return drawn


def _without(
    model: "TransformerBridge", base: Int[Tensor, "batch pos"], neurons: Sequence[Neuron], places: slice | int
) -> Float[Tensor, "batch pos d_vocab"]:
    def silence(activation: Float[Tensor, "batch pos neuron"], hook) -> Float[Tensor, "batch pos neuron"]:
        activation = activation.clone()
        for index in [index for layer, index in neurons if layer == layer_of(hook.name)]:
            activation[:, places, index] = 0
        return activation

    layers = sorted({layer for layer, _ in neurons})
    with intervene(model, [(f"blocks.{layer}.mlp.hook_post", silence) for layer in layers]):
        return model(base)


def _readout(model: "TransformerBridge", x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """What a norm reads of a vector before dividing: LayerNorm takes the mean away, RMS norm nothing."""
    return x - x.mean(-1, keepdim=True) if str(model.cfg.normalization_type).startswith("LN") else x


def _width(model: "TransformerBridge") -> int:
    """How many neurons a layer has."""
    if model.cfg.d_mlp is None:
        raise ValueError("This model has no MLPs, so it has no neurons.")
    return model.cfg.d_mlp


def _checked(model: "TransformerBridge", neuron: Neuron) -> Neuron:
    layer, index, width = int(neuron[0]), int(neuron[1]), _width(model)
    if not (0 <= layer < model.cfg.n_layers and 0 <= index < width):
        raise ValueError(
            f"There is no neuron {index} in layer {layer}: layers go from 0 to {model.cfg.n_layers - 1}, "
            f"neurons from 0 to {width - 1}."
        )
    return layer, index
