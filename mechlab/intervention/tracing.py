"""Causal tracing: where does a fact pass through? Corrupt the subject with noise, restore one state, see what comes back.

Meng et al. 2022 (ROME), section 2. Three runs: clean; corrupted, with noise on the embeddings of the subject's tokens;
and corrupted with a single state, or a window of layers, set back to its clean value. The indirect effect is the
metric of the third minus that of the second, averaged over several draws of the noise.

Easy to get wrong: one draw of noise is not enough; windows inflate (each restores as many states as it has layers);
noise is nothing that the model ever met; and where the effect is largest need not be where an edit works best.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.metrics import Metric, per_prompt
from mechlab.prompts import PromptError
from mechlab.results import Scores, token_labels
from mechlab.runs.fast import NotResumable, Resume
from mechlab.runs.hooks import Hook, intervene

SITES = ("resid_pre", "attn_out", "mlp_out")


@torch.no_grad()
def causal_tracing(
    model,
    base: Int[Tensor, "1 pos"],
    subject: Sequence[int],
    metric: Metric,
    *,
    site: str = "resid_pre",
    window: int = 1,
    noise: float = 3.0,
    samples: int = 10,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> Scores:
    """What comes back when one state of the clean run is restored: metric restored − corrupted, dims (layer, position).

    One prompt; `per_prompt` holds one value for each draw of the noise. Positions before the subject are 0: they are
    never corrupted. The usual metric is `ml.probability(answer)`.

    subject: positions of the subject's tokens (`subject_positions`)
    layers, positions: which states to restore, one at a time (default: all; most of the time goes into them)
    window:  for "attn_out" and "mlp_out", how many layers around the named one are restored together
    noise:   standard deviation of the noise, in standard deviations of the model's token embeddings
    """
    if site not in SITES:
        raise ValueError(f"site is {site!r}; it must be one of {', '.join(map(repr, SITES))}.")
    if window < 1 or (window > 1 and site == "resid_pre"):
        raise ValueError(f"window is {window}: 1 for the stream, 1 or more for what is written to it.")
    count, depth = base.shape[1], model.cfg.n_layers
    asked = [*subject, *(positions or [])]
    if len(base) != 1 or not len(subject) or not all(0 <= p < count for p in asked):
        raise ValueError(
            f"One prompt at a time, and positions between 0 and {count - 1}: got {len(base)} prompts and {asked}."
        )
    layers = range(depth) if layers is None else list(layers)
    if not all(0 <= layer < depth for layer in layers):
        raise ValueError(f"layers is {list(layers)}: the model has layers 0 to {depth - 1}.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(samples, len(subject), model.cfg.d_model, generator=generator)
    added = torch.zeros(samples, count, model.cfg.d_model)
    added[:, list(subject)] = noise * model.W_E.detach().float().std().cpu() * drawn
    try:
        run = _Resumed(model, base, added.to(base.device), metric, site)
    except NotResumable:
        run = _InFull(model, base, added.to(base.device), metric, site)
    clean, corrupted = run.clean, run.restored([], 0)
    positions = range(count) if positions is None else [int(p) for p in positions]
    effects = torch.zeros(samples, len(layers), len(positions))
    for row, layer in enumerate(layers):
        together = range(max(0, layer - (window - 1) // 2), min(depth, layer + window // 2 + 1))
        for column, position in enumerate(positions):
            if position >= min(subject):
                effects[:, row, column] = (run.restored(together, position) - corrupted).cpu()
    names = token_labels(model, base[0])
    return Scores.over_prompts(
        effects,
        ("layer", "position"),
        "metric restored − corrupted",
        labels={"layer": [str(layer) for layer in layers], "position": [names[p] for p in positions]},
        baselines={"clean": clean.mean().item(), "corrupted": corrupted.mean().item()},
    )


def subject_positions(model, prompt: str, subject: str) -> list[int]:
    """The positions of the tokens that hold `subject` in `prompt`, where it occurs last. Raises `PromptError`."""
    start = prompt.rfind(subject) if subject else -1
    if start < 0:
        raise PromptError(f"The subject {subject!r} does not occur in the prompt {prompt!r}.")
    tokens = model.to_tokens(prompt)[0].tolist()
    ends = [len(model.to_string(tokens[: i + 1])) for i in range(len(tokens))]
    offset = ends[-1] - len(prompt)  # the first token is the model's own
    inside = [
        i
        for i, end in enumerate(ends)
        if i and end - offset > start and ends[i - 1] - offset < start + len(subject)
    ]
    return inside


class _Resumed:
    """Only what can change is computed."""

    def __init__(self, model, base: Tensor, noise: Tensor, metric: Metric, site: str):
        self.metric, self.site = metric, site
        self.kept = Resume(model, base)
        tokens = base.expand(len(noise), -1)
        self.noisy = Resume(model, tokens, embedded=self.kept.resid_pre[0] + noise, like=self.kept)
        self.clean = self.kept.ends(metric)

    def restored(self, layers: Sequence[int], position: int) -> Float[Tensor, "sample"]:
        if not len(layers):
            return self.noisy.ends(self.metric)
        stream = self.noisy.resid_pre[layers[0]][:, position:]
        if self.site == "resid_pre":
            there = self.kept.resid_pre[layers[0]][:, position : position + 1]
            stream = torch.cat([there.expand(len(stream), -1, -1), stream[:, 1:]], 1)
        count = self.kept.base.shape[1]

        def edit(kind: str, layer: int, value: Tensor, copies: slice) -> Tensor:
            if kind != self.site or layer not in layers:
                return value
            place = value.shape[1] - (count - position)  # the last layer computes only what is read
            if place < 0:
                return value
            value = value.clone()
            value[:, place] = self.kept.written(kind, layer)[0, position]
            return value

        return self.noisy.measure(self.metric, layers[0], stream[None], position, edit=edit)[0]


class _InFull:
    """Whole runs with hooks, for a model of another kind."""

    def __init__(self, model, base: Tensor, noise: Tensor, metric: Metric, site: str):
        self.model, self.metric, self.site, self.noise = model, metric, site, noise
        self.tokens = base.expand(len(noise), -1)
        logits, self.cache = model.run_with_cache(
            base, names_filter=lambda name: name.endswith(f"hook_{site}")
        )
        self.clean = per_prompt(metric, logits)

    def restored(self, layers: Sequence[int], position: int) -> Float[Tensor, "sample"]:
        hooks: list[Hook] = [("blocks.0.hook_resid_pre", lambda x, hook: x + self.noise)]
        for layer in layers:
            name = f"blocks.{layer}.hook_{self.site}"

            def put(x: Tensor, hook, value: Tensor = self.cache[name]) -> Tensor:
                return torch.cat([x[:, :position], value[:, position : position + 1].expand(len(x), -1, -1), x[:, position + 1 :]], 1)  # fmt: skip

            hooks.append((name, put))
        with intervene(self.model, hooks):
            return per_prompt(self.metric, self.model(self.tokens))
