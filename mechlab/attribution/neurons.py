"""Which neurons wrote the answer, which neurons switched those on, and does the model need them?

An MLP neuron is a key and a value (Geva et al. 2021): its columns of the input matrices say when it is
active, its row of W_out is what it then adds to the residual stream. Scores here are read at one position of
prompts that end before the answer. A high score says that a neuron pushed; only `ablate_neurons` says that it
was needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.arguments import at_least, check_layer, layer_of, mlp_width, whole
from mechlab.attribution.readout import HeldNorm, cap_of, close, held, last_norm, norm_behind, wide
from mechlab.metrics import Metric, fitted, per_prompt
from mechlab.moved import was
from mechlab.prompts import Answers, answer_ids
from mechlab.results import AblationResult, Scores
from mechlab.runs.caching import only
from mechlab.runs.hooks import Hook, intervene
from mechlab.tokens import Batch, Prompts, batch_of

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge

Neuron = tuple[int, int]  # (layer, neuron): L24N1005 in text
EXACT = 128  # neurons of a layer whose score is computed exactly
LIKELY = 256  # tokens that the estimate for the others looks at
CHUNK = 256  # neurons whose logits are computed together


@torch.no_grad()
def value_tokens(
    model: "TransformerBridge", neuron: Neuron, k: int = 10, *, activation: float = 1.0
) -> "pd.DataFrame":
    """The tokens whose logits a neuron raises and lowers most: its value through the unembedding.

    In logits, before the last norm divides, for this activation: a negative one raises what a positive one
    lowers. Geva et al. 2022. In early layers the lists mean little: what is written there is read by other
    layers.
    """
    import pandas as pd

    layer, index = _checked(model, neuron)
    at_least("k", k, 1)
    written = _behind(model, layer).shape(wide(model.blocks[layer].mlp.W_out.detach()))[index]
    effect = activation * (last_norm(model).shape(written) @ wide(model.W_U))
    best, worst = effect.topk(k), (-effect).topk(k)
    text = lambda ids: [model.to_string([i]) for i in ids.tolist()]
    columns = {"raises": text(best.indices), "raised by": best.values.tolist()}
    columns |= {"lowers": text(worst.indices), "lowered by": worst.values.tolist()}
    return pd.DataFrame(columns).round(2)


@was(position="pos")
@torch.no_grad()
def value_neuron_scores(
    model: "TransformerBridge",
    base: Prompts,
    answers: Answers,
    *,
    layers: Sequence[int] | None = None,
    hooks: Sequence[Hook] = (),
    pos: int = -1,
) -> Scores:
    """How much each MLP neuron raises the log-probability of the answer, read from its layer, in nats.

    log p(answer | stream before the MLP writes + what the neuron writes) − log p(answer | stream before the
    MLP writes), with the last norm's scale held at its value: the score of Yu and Ananiadou 2024. dims
    ("layer", "neuron"); layers that are not asked for score 0. The score ignores what later layers make of
    the neuron. Where attention and MLP run side by side (GPT-J, Pythia, Phi), the stream before the MLP
    writes has what attention writes already, as in other models. A norm behind the MLP (Gemma 2, OLMo 2) is
    held at its scale too.
    `hooks` are put on the model first: an intervention to compare with. `pos`: -1 is each prompt's own end.

    Computed exactly for the 128 neurons of a layer that write most, and to second order for the others, which
    hardly move any logit (within 0.005 nats on six prompts of SmolLM2): a tenth of the work. With a soft cap
    on the logits, all are computed exactly.
    """
    width = mlp_width(model)
    chosen = range(model.cfg.n_layers) if layers is None else [check_layer(model, layer) for layer in layers]
    batch = batch_of(model, base)
    right = answer_ids(model, answers, len(batch))
    seen = _Seen(batch, batch.position(pos), hooks)
    scores = torch.zeros(len(batch), model.cfg.n_layers, width, device=model.cfg.device)
    last, W_U, constant = seen.end()
    for layer in chosen:
        before = last.shape(seen.before_mlp(layer)) / last.scale @ W_U + constant
        active = seen.neurons(layer) / seen.behind(layer).scale / last.scale
        written = last.shape(seen.behind(layer).shape(wide(model.blocks[layer].mlp.W_out)))
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
    W_U, cap = wide(model.W_U), cap_of(model)
    log_p = (before if cap is None else cap(before)).log_softmax(-1)
    scores = torch.zeros_like(active)
    if cap is None:
        p, likely = log_p.exp().topk(min(LIKELY, model.cfg.d_vocab))
        slope = W_U[:, answer] - W_U @ log_p.exp()  # of the answer's log-probability
        raised = written @ W_U[:, likely]  # [neuron, likely token]
        curve = raised.pow(2) @ p - (raised @ p).pow(2)  # minus the curvature: a variance under p
        scores = active * (written @ slope) - 0.5 * active.pow(2) * curve
    exact = EXACT if cap is None else len(active)
    loud = (active.abs() * written.norm(dim=-1)).topk(min(exact, len(active))).indices
    for some in loud.split(CHUNK):
        after = before + active[some, None] * (written[some] @ W_U)  # [neuron, d_vocab]
        after = after if cap is None else cap(after)
        scores[some] = after[:, answer] - after.logsumexp(-1) - log_p[answer]
    return scores


@dataclass
class _Seen:
    """What one run of the prompts shows of the MLPs, at one position of each."""

    batch: Batch
    pos: Int[Tensor, "batch"]
    hooks: Sequence[Hook] = ()

    def __post_init__(self):
        ends = ("hook_resid_mid", "hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
        names = only(*ends, "mlp.hook_post", "mlp.hook_in", "ln2_post.hook_scale", "ln_final.hook_scale")
        with intervene(self.model, self.hooks):
            self.logits, self.cache = self.model.run_with_cache(self.batch.tokens, names_filter=names)

    @property
    def model(self) -> "TransformerBridge":
        return self.batch.model

    def at(self, hook: str) -> Float[Tensor, "batch ..."]:
        """What was seen at a hook, at the position of each prompt."""
        return wide(self.cache[hook][torch.arange(len(self.batch), device=self.pos.device), self.pos])

    def end(self) -> tuple[HeldNorm, Float[Tensor, "d_model d_vocab"], Float[Tensor, "d_vocab"]]:
        """The last norm, W_U and what is added to the logits; refused where they do not make the logits."""
        last, W_U = last_norm(self.model, self.at("ln_final.hook_scale")), wide(self.model.W_U)
        constant = wide(self.model.b_U) + (0 if last.bias is None else last.bias @ W_U)
        stream = self.at(f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post")
        logits, cap = last.shape(stream) / last.scale @ W_U + constant, cap_of(self.model)
        logits = logits if cap is None else cap(logits)
        found = wide(self.logits[torch.arange(len(self.batch), device=self.pos.device), self.pos])
        if not close(logits.log_softmax(-1), found.log_softmax(-1), self.model):
            raise ValueError(
                "This model makes its logits of the last stream in another way than by its last norm and "
                "W_U, one that is not known here."
            )
        return last, W_U, constant

    def behind(self, layer: int) -> HeldNorm:
        """The norm behind the MLP, held at its scale; one that does nothing where there is none."""
        name = f"blocks.{layer}.ln2_post.hook_scale"
        return _behind(self.model, layer, self.at(name) if name in self.cache else None)

    def neurons(self, layer: int) -> Float[Tensor, "batch neuron"]:
        """How active the neurons are; a model where they do not make up what the MLP writes is refused."""
        found, behind, mlp = (
            self.at(f"blocks.{layer}.mlp.hook_post"),
            self.behind(layer),
            self.model.blocks[layer].mlp,
        )
        written = found @ wide(mlp.W_out) + (0 if mlp.b_out is None else wide(mlp.b_out))
        written = behind.shape(written) / behind.scale + (0 if behind.bias is None else behind.bias)
        if not self.hooks and not close(written, self.at(f"blocks.{layer}.hook_mlp_out"), self.model):
            raise ValueError(
                f"What the MLP of layer {layer} writes is not the sum of its neurons' rows of W_out: this "
                "architecture does something between them that is not known here."
            )
        return found

    def before_mlp(self, layer: int) -> Float[Tensor, "batch d_model"]:
        """The stream before the MLP writes: all that is on leaving the layer, but for what the MLP wrote."""
        middle, end = (f"blocks.{layer}.hook_{name}" for name in ("resid_mid", "resid_post"))
        if self.hooks and middle not in self.cache:  # the hooks may have changed any of the summands
            return self.at(end) - self.at(f"blocks.{layer}.hook_mlp_out")
        start, attention = (f"blocks.{layer}.hook_{name}" for name in ("resid_pre", "attn_out"))
        found = self.at(middle) if middle in self.cache else self.at(start) + self.at(attention)
        if not self.hooks and not close(
            found + self.at(f"blocks.{layer}.hook_mlp_out"), self.at(end), self.model
        ):
            raise ValueError(
                f"The stream on leaving layer {layer} is not what was there before plus what attention and "
                "MLP wrote: this architecture does something else that is not known here."
            )
        return found

    def read(self, layer: int) -> tuple[HeldNorm, Float[Tensor, "batch d_model"]]:
        """The norm before the MLP, and the stream that it reads."""
        block = self.model.blocks[layer]
        middle = f"blocks.{layer}.hook_resid_mid"
        beside = middle not in self.cache
        stream = self.at(f"blocks.{layer}.hook_resid_pre" if beside else middle)
        norms = (getattr(block, name, None) for name in (("ln2", "ln1") if beside else ("ln2",)))
        norm = next((held(each) for each in norms if isinstance(each, torch.nn.Module)), None)
        norm = norm or HeldNorm(torch.ones(1, 1, device=stream.device), False, None, None)
        shaped, got = norm.shape(stream), self.at(f"blocks.{layer}.mlp.hook_in")
        got = got if norm.bias is None else got - norm.bias
        scaled = shaped * ((shaped * got).sum(-1, keepdim=True) / shaped.pow(2).sum(-1, keepdim=True))
        if not close(scaled, got, self.model):
            raise ValueError(
                f"The MLP of layer {layer} does not read the stream through a norm alone: this architecture "
                "does something between them that is not known here."
            )
        return norm, stream


def comparative_neuron_scores(
    model: "TransformerBridge",
    base: Prompts,
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
    base: Prompts,
    value_neurons: Sequence[Neuron],
    importance: Sequence[float],
    *,
    row: str = "gate",
    pos: int = -1,
) -> Scores:
    """Which earlier MLP neurons switched the value neurons on, at the same position.

    A value neuron's input column is its key: what earlier neurons wrote, times the key, is their share of its
    pre-activation before any bias. Scores are shares, weighted by the value neurons' `importance` and summed,
    so they have its unit. Yu and Ananiadou 2024. A gated MLP has two keys, silu(gate) · in, and no single
    inner product: choose `row="gate"` (whether the neuron opens) or "in" (how much passes, and its sign), and
    say which. GPT-2 has "in" only. Where attention runs beside the MLP (GPT-J, Pythia, Phi), the MLP reads
    the stream on entering the layer, and attention of its own layer is no part of it.
    """
    width = mlp_width(model)
    if row not in ("gate", "in") or (row == "gate" and not model.cfg.gated_mlp):
        raise ValueError(
            f"row is {row!r}; this model has {'gate and in' if model.cfg.gated_mlp else 'only in'}."
        )
    if len(value_neurons) != len(importance):
        raise ValueError(
            f"There are {len(value_neurons)} value neurons, and the importance of {len(importance)}: give "
            "one number for each."
        )
    batch = batch_of(model, base)
    seen = _Seen(batch, batch.position(pos))
    scores = torch.zeros(len(batch), model.cfg.n_layers, width)
    for neuron, weight in zip(value_neurons, importance, strict=True):
        layer, index = _checked(model, neuron)
        mlp = model.blocks[layer].mlp
        key = wide((mlp.W_gate if row == "gate" else mlp.W_in)[:, index])
        norm, stream = seen.read(layer)
        total = norm.shape(stream) @ key  # [batch]
        for earlier in range(layer):
            behind = seen.behind(earlier)
            written = behind.shape(wide(model.blocks[earlier].mlp.W_out))
            active = seen.neurons(earlier) / behind.scale
            share = active * (norm.shape(written) @ key) / total[:, None]
            scores[:, earlier] += (float(weight) * share).cpu()
    return Scores.over_prompts(scores, ("layer", "neuron"), f"share of the value neurons' {row} (nats)")


@was(position="pos")
@torch.no_grad()
def ablate_neurons(
    model: "TransformerBridge",
    base: Prompts,
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
    layer, the random ones are quieter: then silence the loudest others too.
    Neurons chosen and tested on the same prompts look better than they are on others. `pos`: -1 is each
    prompt's own end. Raises a `ValueError` for a neuron that is named twice, and where a layer has too few
    others to compare with.
    """
    mlp_width(model)
    neurons, batch = [_checked(model, neuron) for neuron in neurons], batch_of(model, base)
    at_least("draws", draws, 1)
    _refuse_twice(neurons)
    metric = fitted(metric, batch)
    measured = lambda logits: per_prompt(metric, wide(logits)).float().cpu()
    run = lambda chosen: measured(_without(batch, chosen, places))
    logits, cache = model.run_with_cache(batch.tokens, names_filter=only("mlp.hook_post"))
    places = torch.arange(batch.tokens.shape[1], device=batch.ends.device)
    places = places <= batch.ends[:, None] if pos is None else places == batch.position(pos)[:, None]
    generator = torch.Generator().manual_seed(seed)
    draw = [_matched(model, cache, neurons, places, generator) for _ in range(draws)]
    random = torch.stack([run(chosen) for chosen in draw])
    return AblationResult(measured(logits), run(neurons), random)


def _matched(
    model: "TransformerBridge",
    cache: "ActivationCache",
    neurons: Sequence[Neuron],
    places: Bool[Tensor, "batch pos"],
    generator: torch.Generator,
) -> list[Neuron]:
    """For each neuron another one of its layer, about as loud."""
    taken, drawn = set(neurons), []
    for layer in {layer for layer, _ in neurons}:
        mine, width = sum(layer == other for other, _ in neurons), mlp_width(model)
        if 2 * mine > width:
            raise ValueError(
                f"{'Every neuron' if mine == width else f'{mine} of the {width} neurons'} of layer {layer} "
                f"{'is' if mine == width else 'are'} chosen, so there "
                f"{'is no other' if mine == width else 'are not as many others'} to compare with."
            )
    for layer, index in neurons:
        active = wide(cache["post", layer][places]).abs().mean(0)
        loud = active * wide(model.blocks[layer].mlp.W_out).norm(dim=-1)
        near = [n for n in (loud - loud[index]).abs().argsort().tolist() if (layer, n) not in taken][:20]
        drawn.append((layer, near[int(torch.randint(len(near), (1,), generator=generator))]))
        taken.add(drawn[-1])
    return drawn


def _without(
    batch: Batch, neurons: Sequence[Neuron], places: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_vocab"]:
    def silence(activation: Float[Tensor, "batch pos neuron"], hook) -> Float[Tensor, "batch pos neuron"]:
        mine = torch.zeros(activation.shape[-1], dtype=torch.bool, device=activation.device)
        mine[[index for layer, index in neurons if layer == layer_of(hook.name)]] = True
        return torch.where(places[..., None] & mine, torch.zeros_like(activation), activation)

    layers = sorted({layer for layer, _ in neurons})
    with intervene(batch.model, [(f"blocks.{layer}.mlp.hook_post", silence) for layer in layers]):
        return batch.model(batch.tokens)


def _behind(
    model: "TransformerBridge", layer: int, scale: Float[Tensor, "batch 1"] | None = None
) -> HeldNorm:
    """The norm behind the MLP of a layer; one that does nothing where there is none."""
    norm = norm_behind(model, layer, "ln2_post")
    if norm is not None:
        return held(norm, scale)
    return HeldNorm(torch.ones(1, 1, device=model.cfg.device), False, None, None)


def _refuse_twice(neurons: Sequence[Neuron]) -> None:
    twice = [neuron for n, neuron in enumerate(neurons) if neuron in neurons[:n]]
    if twice:
        raise ValueError(f"The neuron {twice[0]} is named twice: it can be silenced only once.")


def _checked(model: "TransformerBridge", neuron: Neuron) -> Neuron:
    layer, index = neuron
    width = mlp_width(model)
    if not (whole(layer) and whole(index) and 0 <= layer < model.cfg.n_layers and 0 <= index < width):
        raise ValueError(
            f"There is no neuron {index} in layer {layer}: layers go from 0 to {model.cfg.n_layers - 1}, "
            f"neurons from 0 to {width - 1}."
        )
    return int(layer), int(index)
