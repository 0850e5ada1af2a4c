"""Which tokens of the prompt mattered? Nine answers to the same question, all called alike.

    method(model, base, source, metric) -> Scores with one number a token

`base` are the prompts, `source` what their tokens are replaced by (`baseline_tokens(model, base, ",")`, or
any prompts of the same length, such as corrupted ones). Prompts are of one length: scores belong to
positions. A score above zero: the token raised the metric,
compared with its replacement. Scores are in the unit of the metric. (Gradient norm and rollout have no sign
and units of their own, and gradient × input compares with no replacement.) Tokens that are equal in base and
source do not play; they score 0.

`Scores.whole` is metric(base) − metric(source), and `Scores.gap` is what the scores fall short of it. Shapley
values and kernel SHAP close the gap always, integrated gradients with enough steps; the others do not promise
to.
"""

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, gradients, outside_inference
from mechlab.attribution.masking import Game, Source, input_game
from mechlab.attribution.rollout import attention_rollout
from mechlab.metrics import Metric
from mechlab.moved import say
from mechlab.prompts import PromptError
from mechlab.results import Scores, position_labels
from mechlab.runs.norms import wide
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LONGEST_EXACT = 12  # players of exact Shapley values: 2 to the power of this many masks


@outside_inference
def gradient_norm(model: "TransformerBridge", base: Prompts, source: Source, metric: Metric) -> Scores:
    """Length of the metric's gradient with respect to each token's embedding (Simonyan et al. 2013).

    How fast the metric changes when the embedding moves, in the worst direction; it has no sign, and says
    nothing about how far a real replacement lies. `source` only says which tokens play. In metric units per
    unit of embedding length.
    """
    played = input_game(model, base, source, metric)
    rows = [slope.norm(dim=-1) for slope in _slopes(played)]
    return _scores(played, rows, "gradient norm", whole=False, signed=False)


@outside_inference
def gradient_x_input(model: "TransformerBridge", base: Prompts, source: Source, metric: Metric) -> Scores:
    """Each token's embedding times the metric's gradient there.

    Shrikumar et al. 2016; captum's InputXGradient. The first-order guess at what the embedding brings, beside
    one of zeros, which no token has. `source` only says which tokens play. For one version a warning says
    that this name was `gradient_x_difference` before.
    """
    say(
        "gradient_x_input is gradient × embedding now, as the field has it; gradient × (embedding − "
        "baseline), which it was, is gradient_x_difference.",
        4,
    )
    return _gradient_x_input(model, base, source, metric)


def _gradient_x_input(model: "TransformerBridge", base: Prompts, source: Source, metric: Metric) -> Scores:
    played = input_game(model, base, source, metric)
    x = wide(played.x[:, played.players])
    rows = [(slope * own).sum(-1) for slope, own in zip(_slopes(played), x, strict=True)]
    return _scores(played, rows, "gradient × input", whole=False)


@outside_inference
def gradient_x_difference(
    model: "TransformerBridge", base: Prompts, source: Source, metric: Metric
) -> Scores:
    """Gradient times (embedding − baseline): the first-order guess at what replacing each token would do.

    One step of integrated gradients, at the prompt itself, where the metric may be saturated. With zeros as
    source it is gradient × input.
    """
    played = input_game(model, base, source, metric)
    way = wide(played.x[:, played.players]) - wide(played.x_source[:, played.players])
    rows = [(slope * step).sum(-1) for slope, step in zip(_slopes(played), way, strict=True)]
    return _scores(played, rows, "gradient × difference")


@outside_inference
def integrated_gradients(
    model: "TransformerBridge", base: Prompts, source: Source, metric: Metric, *, steps: int = 64
) -> Scores:
    """The gradient averaged along the straight line from source to base, times (base − source).

    Sundararajan et al. 2017, with captum's Gauss-Legendre steps, 16 of them in one batched pass. Complete:
    the scores add up to metric(base) − metric(source) when the steps suffice. `Scores.gap` says whether they
    do; 16 steps often do not.
    """
    from captum.attr import IntegratedGradients

    at_least("steps", steps, 1)
    played = input_game(model, base, source, metric)
    options = {"n_steps": steps, "internal_batch_size": 16}
    return _each(played, "integrated gradients", IntegratedGradients, slopes=True, **options)


@outside_inference
def occlusion(model: "TransformerBridge", base: Prompts, source: Source, metric: Metric) -> Scores:
    """The fall of the metric when one token alone is replaced (Zeiler and Fergus 2014).

    captum's FeatureAblation. Misses tokens of which either would do: replacing one of two sufficient tokens
    changes nothing.
    """
    from captum.attr import FeatureAblation

    played = input_game(model, base, source, metric)
    return _each(played, "occlusion", FeatureAblation, perturbations_per_eval=len(played.players))


@outside_inference
def lime(
    model: "TransformerBridge",
    base: Prompts,
    source: Source,
    metric: Metric,
    *,
    samples: int = 128,
    seed: int = 0,
) -> Scores:
    """Weights of a sparse linear model fitted to the metric on random masks near the prompt.

    Ribeiro et al. 2016; captum's Lime: each token is kept with probability 1/2, masks are weighted by
    exp(−d²/2) of their cosine distance d to the whole prompt, and a Lasso with penalty 0.01 is fitted.
    Depends on `seed`. Where one token alone differs, nothing is fitted: it has the whole difference.
    """
    from captum.attr import Lime

    _check_samples(samples, "LIME")
    played = input_game(model, base, source, metric)
    if len(played.players) == 1:
        return _nobody_to_share_with(played, "LIME")
    return _each(played, "LIME", Lime, seed=seed, n_samples=samples, perturbations_per_eval=samples)


@outside_inference
def kernel_shap(
    model: "TransformerBridge",
    base: Prompts,
    source: Source,
    metric: Metric,
    *,
    samples: int = 128,
    seed: int = 0,
) -> Scores:
    """Shapley values by a weighted linear fit to the values of masks (Lundberg and Lee 2017).

    Exact when all proper masks fit into `samples`: seven tokens with 128. Beyond that the sizes that fit are
    taken whole, as the shap package does, and of the others `samples` in all are drawn, each with its
    complement; then it depends on `seed`: draw again before trusting small differences. Always adds up.
    (captum's KernelShap draws all of them, and misses the Shapley values even of five tokens.)
    """
    _check_samples(samples, "kernel SHAP")
    played = input_game(model, base, source, metric)
    if len(played.players) == 1:
        return _nobody_to_share_with(played, "kernel SHAP")
    masks, weights = _shap_masks(len(played.players), samples, torch.Generator().manual_seed(seed))
    rows = []
    for row in range(len(played)):
        low, whole = played.empty[row].double().cpu(), (played.full - played.empty)[row].double().cpu()
        # the last player's share is what the others leave of the whole, so that they add up
        x = (masks[:, :-1] - masks[:, -1:]) * weights.sqrt()[:, None]
        y = (played.values(row, masks.float()).double().cpu() - low - masks[:, -1] * whole) * weights.sqrt()
        most = torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0]
        rows.append(torch.cat([most, (whole - most.sum())[None]]))
    return _scores(played, rows, "kernel SHAP")


@outside_inference
def shapley_values(model: "TransformerBridge", base: Prompts, source: Source, metric: Metric) -> Scores:
    """Exact Shapley values: a token's average contribution over all orders in which tokens could join.

    Shapley 1953; all 2ⁿ masks of n tokens are run. The only shares that add up (efficiency), treat equal
    tokens alike (symmetry), give nothing to a token without effect (dummy) and are linear in the metric.
    Raises `PromptError` beyond 12 players.
    """
    played = input_game(model, base, source, metric)
    n = len(played.players)
    if n > LONGEST_EXACT:
        raise PromptError(
            f"{n} tokens differ between base and source, and exact Shapley values need 2^{n} = {2**n:,} runs "
            f"a prompt; the limit is {LONGEST_EXACT}. Use `kernel_shap`, which estimates them, or a source "
            "that differs in fewer tokens."
        )
    masks = torch.tensor([[int(i) >> p & 1 for p in range(n)] for i in range(2**n)]).flip(1)
    size = masks.sum(1)
    joins = torch.tensor([1 / (n * comb(n - 1, max(int(k) - 1, 0))) for k in size])  # of a player in the mask
    stays = torch.tensor([1 / (n * comb(n - 1, min(int(k), n - 1))) for k in size])  # of a player outside it
    weight = torch.where(masks == 1, joins[:, None], -stays[:, None]).double()
    rows = [played.values(row, masks.float()).double().cpu() @ weight for row in range(len(played))]
    return _scores(played, rows, "Shapley value")


INPUT_METHODS: dict[str, Callable[..., Scores]] = {
    "gradient norm": gradient_norm,
    "gradient × input": _gradient_x_input,
    "gradient × difference": gradient_x_difference,
    "integrated gradients": integrated_gradients,
    "occlusion": occlusion,
    "LIME": lime,
    "kernel SHAP": kernel_shap,
    "Shapley values": shapley_values,
    "attention rollout": attention_rollout,
}


def _each(
    played: Game, name: str, method: type, *, slopes: bool = False, seed: int | None = None, **options
) -> Scores:
    """Ask captum for every prompt. Its input is the mask, all ones; its baseline the mask of zeros."""
    rows = []
    for row in range(len(played)):
        value = played.run if slopes else played.values
        ones = torch.ones(1, len(played.players))  # on the CPU, where captum's random masks repeat everywhere
        if slopes:
            with gradients():
                _require_slope(value(row, ones.clone().requires_grad_())[0])
        # captum draws from torch's global generator: seed a copy of it, so that nobody else's numbers change,
        # afresh for each prompt, so that a prompt's scores do not depend on its batch.
        with gradients(), torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)  # the CPU's own: a GPU's stay
            found = method(lambda masks, row=row, value=value: value(row, masks)).attribute(
                ones.requires_grad_(slopes), baselines=torch.zeros_like(ones), **options
            )
        rows.append(found[0].detach())
    return _scores(played, rows, name)


def _slopes(played: Game) -> list[Float[Tensor, "player d_model"]]:
    """The metric's gradient with respect to the embedding of each player, prompt by prompt."""
    rows = []
    for row in range(len(played)):
        with gradients():
            x = played.x[row : row + 1].detach().clone().requires_grad_()
            value = played.measured(row, x)[0]
            _require_slope(value)
            (gradient,) = torch.autograd.grad(value, x)
        rows.append(wide(gradient[0, played.players]))
    return rows


def _shap_masks(
    n: int, samples: int, generator: torch.Generator
) -> tuple[Float[Tensor, "mask player"], Float[Tensor, "mask"]]:
    """Proper masks of n players and their weights in the fit: whole sizes first, from both ends inwards."""
    found, weights, left = [], [], samples
    sizes = [*range(1, n // 2 + 1)]  # each with the size of its complements
    weight = [
        (n - 1) / (k * (n - k)) * (1 if 2 * k == n else 2) for k in sizes
    ]  # of all masks of these sizes
    while sizes and (count := comb(n, sizes[0]) * (1 if 2 * sizes[0] == n else 2)) <= left:
        whole = [set(some) for some in combinations(range(n), sizes[0])]
        whole += [] if 2 * sizes[0] == n else [{*range(n)} - some for some in whole]
        found, left = found + whole, left - count
        weights += [weight[0] / count] * count
        sizes, weight = sizes[1:], weight[1:]
    drawn: Counter[frozenset[int]] = Counter()
    while sizes and len(drawn) + 2 <= left:
        size = sizes[int(torch.multinomial(torch.tensor(weight), 1, generator=generator))]
        some = frozenset(torch.randperm(n, generator=generator)[:size].tolist())
        drawn.update([some, frozenset(range(n)) - some])
    found += [set(some) for some in drawn]
    weights += [sum(weight) * times / drawn.total() for times in drawn.values()]
    masks = torch.zeros(len(found), n, dtype=torch.double)
    for row, some in enumerate(found):
        masks[row, [*some]] = 1
    return masks, torch.tensor(weights, dtype=torch.double)


def _check_samples(samples: int, name: str) -> None:
    if at_least("samples", samples, 1) < 2:
        raise ValueError(f"{name} fits a linear model to random masks and needs more than {samples}.")


def _nobody_to_share_with(played: Game, name: str) -> Scores:
    """The scores of one player alone: it has the whole difference."""
    return _scores(played, list((played.full - played.empty)[:, None]), name)


def _require_slope(value: Float[Tensor, ""]) -> None:
    if not value.requires_grad:
        raise ValueError(
            "This metric has no gradient: it counts or compares (argmax, ==), or was detached. Give one that "
            "changes smoothly with the logits, or use a method that replaces tokens, such as `occlusion`."
        )


def _scores(
    played: Game, rows: list[Float[Tensor, "player"]], name: str, *, whole: bool = True, **options
) -> Scores:
    values = torch.zeros(len(played), played.base.shape[1])
    values[:, played.players] = torch.stack([row.float().cpu() for row in rows])
    total = (played.full - played.empty).cpu() if whole else None
    labels = {"pos": position_labels(played.model, played.base)}
    return Scores.over_prompts(
        values, ("pos",), f"{name} (units of the metric)", labels=labels, whole=total, **options
    )
