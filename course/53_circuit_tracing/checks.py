"""Checks of notebook 53, circuit tracing."""

import operator

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

import mechlab as ml
from mechlab_course.checking import close, declare, random, refuse
from mechlab_course.exercises import Attempt, NotYet, checker


def _gates(seed: int, size: int) -> tuple[Tensor, Tensor]:
    g, u = 3 * random(2, size, seed=seed)
    g[0] = 0.0  # what is divided by it is no number
    return g, u


def _whole_slopes(g: Tensor, u: Tensor) -> Tensor:
    return torch.stack([torch.sigmoid(g) * u, silu(g)])


@declare(
    "53.1", axes="input, neuron", says="Half of each neuron through its gate, half through its input; exact."
)
class GatedSlopes:
    cases = (_gates(0, 6), _gates(1, 3), (torch.tensor([-40.0, 25.0, 1.0]), torch.tensor([2.0, -3.0, 0.0])))

    def right(g, u):
        return _whole_slopes(g, u) / 2

    def otherwise(found, g, u):
        parts = found * torch.stack([g, u])
        made, wanted = parts.sum(0), silu(g) * u
        if not close(made, wanted, 1e-3):
            n = int((made - wanted).abs().argmax())
            where = f"For g = {g[n]:.2f}, u = {u[n]:.2f} the neuron is {wanted[n]:.3f}"
            return f"{where}, and your two parts add up to {made[n]:.3f}."
        return "The parts add up to the neuron, and they are not half and half."

    def true_slopes(g, u):
        """These are the true slopes (derivatives). Their parts do not add up to the neuron: it is bent."""
        s = torch.sigmoid(g)
        return torch.stack([u * s * (1 + g * (1 - s)), silu(g)])

    def half_true_slopes(g, u):
        """These are half of the derivatives. The slope for g is that of the line through 0."""
        return GatedSlopes.true_slopes(g, u) / 2

    def the_whole_twice(g, u):
        """Each of your slopes gives the whole of the neuron: together twice as much. Halves are asked."""
        return _whole_slopes(g, u)

    def the_parts(g, u):
        """These are the parts themselves. Slopes are asked, which are multiplied by g and by u."""
        return (silu(g) * u / 2).expand(2, -1)

    def all_by_the_gate(g, u):
        """All of the neuron goes through the gate. Half and half is asked."""
        return torch.stack([torch.sigmoid(g) * u, 0 * u])

    def all_by_the_input(g, u):
        """All of the neuron goes through u. Half and half is asked."""
        return torch.stack([0 * g, silu(g)])

    def exchanged(g, u):
        """The two rows are exchanged: the slope for g stands first."""
        return GatedSlopes.right(g, u).flip(0)

    def gate_without_input(g, u):
        """The slope for g lacks u: silu(g) · u is g · (sigmoid(g) · u)."""
        return torch.stack([torch.sigmoid(g), silu(g)]) / 2

    def sigmoid_for_both(g, u):
        """The slope for u is silu(g) / 2. You took sigmoid(g)."""
        return torch.stack([torch.sigmoid(g) * u, torch.sigmoid(g)]) / 2


def _points(seed: int, size: int) -> tuple[Tensor, Tensor]:
    x, y = 2 * random(2, size, seed=seed)
    y[0] = x[0]  # equal
    y[1] = x[1] + 2e-5  # so near that the difference is rounding
    x[2], y[2] = 0.5, 0.52  # near, and not equal
    return x, y


def _tangent(f, x: Tensor) -> Tensor:
    return ((f(x.double() + 1e-3) - f(x.double() - 1e-3)) / 2e-3).float()


def _line(f, x: Tensor, y: Tensor) -> Tensor:
    return ((f(x.double()) - f(y.double())) / (x.double() - y.double())).float()


def _equal(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs() < 1e-4


@declare(
    "53.2", axes="neuron", tolerance=1e-3, says="Exact for the change, and a number where x and y are equal."
)
class Secant:
    cases = ((silu, *_points(0, 6)), (torch.tanh, *_points(1, 5)), (softplus, *_points(2, 4)))

    def right(f, x, y):
        return torch.where(_equal(x, y), _tangent(f, x), _line(f, x, y))

    def otherwise(found, f, x, y):
        right = Secant.right(f, x, y)
        n = int((found - right).abs().argmax())
        if _equal(x, y)[n]:
            why = "x and y are equal, or so near that their difference is rounding"
            return f"At [{n}] {why}: there it is the slope of f, {right[n]:.4f}, not {found[n]:.4f}."
        return (
            f"From {y[n]:.3f} to {x[n]:.3f} f changes by {f(x[n]) - f(y[n]):.5f}; your slope times the "
            f"step gives {found[n] * (x[n] - y[n]):.5f}."
        )

    def at_x(f, x, y):
        """That is the derivative at x. The line through both points is asked: it is exact for the step."""
        return _tangent(f, x)

    def at_y(f, x, y):
        """That is the derivative at y. The line through both points is asked."""
        return _tangent(f, y)

    def half_way(f, x, y):
        """That is the derivative half way between: near, and not exact. Divide difference by difference."""
        return _tangent(f, (x + y) / 2)

    def mean_of_both(f, x, y):
        """That is the mean of two derivatives. It is not exact: divide difference by difference."""
        return (_tangent(f, x) + _tangent(f, y)) / 2

    def derivative_where_near(f, x, y):
        """Where x and y are 0.02 apart yours is the derivative: near, and not exact. Only below 1e-4."""
        return torch.where((x - y).abs() < 0.03, _tangent(f, x), _line(f, x, y))

    def nothing_where_equal(f, x, y):
        """Where x and y are equal your slope is 0. There it is that of f itself."""
        return torch.where(_equal(x, y), 0.0, _line(f, x, y))

    def one_where_equal(f, x, y):
        """Where x and y are equal your slope is 1. There it is that of f itself."""
        return torch.where(_equal(x, y), 1.0, _line(f, x, y))

    def value_where_equal(f, x, y):
        """Where x and y are equal you return f itself. There the slope of f is asked."""
        return torch.where(_equal(x, y), f(x), _line(f, x, y))

    def sign(f, x, y):
        """The sign is turned: one of the two differences runs the other way."""
        return -Secant.right(f, x, y)

    def upside_down(f, x, y):
        """It is upside down: the change of f is divided by the step."""
        return 1 / Secant.right(f, x, y)

    def change(f, x, y):
        """That is the change of f. Divide it by x − y."""
        return f(x) - f(y)

    def from_zero(f, x, y):
        """That is f(x) / x, the line through 0. The second point is y."""
        return f(x) / x


def _exchange_case(seed: int, layers: int, pos: int, neurons: int, k: int):
    base, source, ranking = random(3, layers, pos, neurons, seed=seed)
    ranking[0, 0, 0] = -3.0  # the largest of all is negative
    return base, source, ranking, k


def _mask(ranking: Tensor, k: int) -> Tensor:
    chosen = torch.zeros(ranking.numel(), dtype=torch.bool)
    chosen[ranking.flatten().topk(k).indices] = True
    return chosen.view(ranking.shape)


def _put(chosen: Tensor, base: Tensor, source: Tensor) -> Tensor:
    return torch.stack([torch.where(chosen, base, source), torch.where(chosen, source, base)])


@declare(
    "53.3", axes="(kept, away), layer, pos, neuron", says="Kept: all others exchanged. Away: only these."
)
class Exchanged:
    cases = (
        _exchange_case(0, 3, 4, 5, 4),
        _exchange_case(1, 2, 3, 6, 1),
        _exchange_case(2, 2, 2, 4, 15),
        _exchange_case(3, 2, 2, 3, 0),
        _exchange_case(4, 2, 3, 2, 12),
    )

    def right(base, source, ranking, k):
        return _put(_mask(ranking.abs(), k), base, source)

    def otherwise(found, base, source, ranking, k):
        counts = [int((part == source).sum()) for part in found]
        every = base.numel()
        return (
            f"With k = {k} of {every} neurons, source's values should stand in {every - k} places of the "
            f"first answer and in {k} of the second; in yours they stand in {counts[0]} and {counts[1]}."
        )

    def turned(base, source, ranking, k):
        """base and source are exchanged: the kept neurons have their own values, those of base."""
        return _put(_mask(ranking.abs(), k), source, base)

    def signed(base, source, ranking, k):
        """You ranked with signs. The largest by size are asked: a neuron against the answer matters too."""
        return _put(_mask(ranking, k), base, source)

    def smallest(base, source, ranking, k):
        """You took the k smallest."""
        return _put(_mask(-ranking.abs(), k), base, source)

    def most_negative(base, source, ranking, k):
        """You took the k most negative. The largest by size are asked."""
        return _put(_mask(-ranking, k), base, source)

    def k_in_every_row(base, source, ranking, k):
        """You took k in every row of neurons. k are asked of all layers and positions together."""
        few = min(k, ranking.shape[-1])
        chosen = torch.zeros_like(ranking).scatter(-1, ranking.abs().topk(few).indices, 1.0).bool()
        return _put(chosen, base, source)

    def k_in_every_layer(base, source, ranking, k):
        """You took k in every layer. k are asked of all layers and positions together."""
        return _put(torch.stack([_mask(each.abs(), min(k, each.numel())) for each in ranking]), base, source)

    def zero_for_others(base, source, ranking, k):
        """Others are 0 in your answer. They get their values of source."""
        chosen = _mask(ranking.abs(), k)
        return torch.stack([base * chosen, base * ~chosen])

    def same_twice(base, source, ranking, k):
        """Both of your answers are the kept one. In the second, only the k largest are exchanged."""
        return _put(_mask(ranking.abs(), k), base, source)[[0, 0]]

    def by_change(base, source, ranking, k):
        """You ranked by how much the neurons changed. `ranking` says the order."""
        return _put(_mask((base - source).abs(), k), base, source)


OTHER = "The dogs near the old house", "The dog near the old house"
CHANGED, CLAIM, TRUE = 0.3, 0.15, 1 / 3  # the receiver; of its change; of the claim


@checker("53.4")
def check_false_link(attempt: Attempt, model) -> str:
    metric = ml.logit_difference(ml.single_token(model, " are"), ml.single_token(model, " is"))
    contrast = ml.Contrast(model, *OTHER, metric)
    sender, receiver = _two_places(attempt(), contrast)
    row = contrast.direct([receiver])
    claim, change = row.neurons[0][sender].item(), row.change[0].item()
    share = claim / change if change else 0.0
    names = " → ".join(f"L{layer}N{neuron} at {pos}" for layer, pos, neuron in (sender, receiver))
    told = f"{names}: the graph claims {claim:.3f} of {change:.3f}"
    refuse(
        abs(change) < CHANGED, f"{told}. That is hardly a change: the receiver should change by {CHANGED}."
    )
    refuse(
        abs(share) < CLAIM,
        f"{told}. It claims only {abs(share):.2f} of the receiver's change; look for at least {CLAIM}.",
    )
    away = _moved(model, contrast.base, contrast.source, sender, receiver)
    put = -_moved(model, contrast.source, contrast.base, sender, receiver)
    found = f"{told}; taken away {away:.3f}, put in {put:.3f}, in the mean {(away + put) / 2:.3f}"
    refuse((away + put) / 2 / claim >= TRUE, f"{found}. By this measure the link is true.")
    return f"{found}. The graph says something else than the experiments."


def _two_places(answer, contrast) -> list[tuple[int, int, int]]:
    """The sender and the receiver, checked."""
    what = "Return two places, the sender and the receiver, each (layer, position, neuron)"
    try:
        places = [tuple(operator.index(n) for n in place) for place in answer]
    except TypeError:
        raise NotYet(f"{what}, of whole numbers.") from None
    refuse([len(place) for place in places] != [3, 3], f"{what}.")
    layers, positions, width = contrast.totals().values.shape
    for place in places:
        inside = all(0 <= n < limit for n, limit in zip(place, (layers, positions, width), strict=True))
        limits = f"layers 0 to {layers - 1}, positions 0 to {positions - 1}, neurons 0 to {width - 1}"
        refuse(not inside, f"There is no neuron {place}: {limits}.")
    (first, *_), (last, *_) = places
    refuse(
        first >= last,
        f"The sender is in layer {first}, the receiver in layer {last}: a sender is in an earlier layer.",
    )
    return places


@torch.no_grad()
def _moved(model, run, other, sender, receiver) -> float:
    """What the receiver loses when the sender alone has its value of another run, other neurons held."""
    held = {layer: run.at("post", layer).clone() for layer in range(receiver[0])}
    held[sender[0]][0, sender[1], sender[2]] = other.at("post", sender[0])[0, sender[1], sender[2]]
    hooks = [(f"blocks.{layer}.mlp.hook_post", lambda x, hook, v=v: v) for layer, v in held.items()]
    name = f"blocks.{receiver[0]}.mlp.hook_post"
    with ml.intervene(model, hooks):
        _, cache = model.run_with_cache(run.tokens, names_filter=name)
    place = 0, receiver[1], receiver[2]
    return (run.at("post", receiver[0])[place] - cache[name][place]).item()


MANY = "are were have do go they them their theirs themselves these those 're"
ONE = "am is was has does goes it its itself he him his himself she her hers herself this that 's 'm"
OWNERS = {"her", "our", "your", "their"}  # an s makes no plural of them
KEPT, AWAY, NEURONS = 0.4, 0.5, 60


@checker("53.5")
def check_grammar(attempt: Attempt, model) -> str:
    base, source, right, wrong = _four_texts(attempt())
    words = [ml.single_token(model, word) for word in (right, wrong)]
    try:
        contrast = ml.Contrast(model, base, source, ml.logit_difference(*words))
    except ValueError as reason:
        raise NotYet(f"These two cannot be compared: {reason}") from None
    change = contrast.change.item()
    told = f"“{right}” less “{wrong}” differs by {change:.2f} logits"
    refuse(
        change < 1, f"{told}. Look for a difference of at least 1, in the sense that base asks for “{right}”."
    )
    totals = contrast.totals()
    chance = torch.rand(totals.values.shape, generator=torch.Generator().manual_seed(0))
    by_chance = ml.Scores(chance, totals.dims, "by chance")
    (kept, away), (other, _) = (
        [float(x) for x in ml.kept_and_away(contrast, ranking, [NEURONS]).values[:, 0]]
        for ranking in (totals, by_chance)
    )
    told = f"{told}; {NEURONS} neurons keep {kept:.2f}, and {away:.2f} is left without them"
    told = f"{told} ({NEURONS} by chance keep {other:.2f})"
    refuse(kept < KEPT, f"{told}. Look for one where {NEURONS} neurons keep at least {KEPT}.")
    refuse(away > AWAY, f"{told}. Look for one where at most {AWAY} is left without them.")
    return f"{told}."


def _four_texts(answer) -> list[str]:
    try:
        texts = [*answer]
    except TypeError:
        texts = []
    if len(texts) != 4 or not all(isinstance(text, str) for text in texts):
        raise NotYet("Return four texts: base, source, the word after base, the word after source.")
    pair = {text.strip().lower() for text in texts[2:]}
    refuse(len(pair) < 2, "The two next words are the same.")
    plural = any(len(a) > 2 and a + s == b for s in ("s", "es") for a in pair - OWNERS for b in pair)
    roots = pair | {text.removesuffix("n") for text in pair}  # the token of "aren't" is " aren"
    refuse(
        all(roots & {*words.split()} for words in (MANY, ONE)) or plural,
        f"{texts[2]!r} and {texts[3]!r}: these two words differ in number. Look for something else.",
    )
    return texts
