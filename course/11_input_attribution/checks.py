"""Checks of notebook 11, input attribution. Most play small games whose values are known for every mask."""

from functools import reduce
from itertools import permutations, product
from math import factorial

import torch
from torch import Tensor

import mechlab as ml
from mechlab.attribution.masking import input_game
from mechlab_course.checking import (
    close,
    compare,
    declare,
    is_like,
    mistakes_in,
    must_equal,
    only_wrong,
    random,
    refuse,
)
from mechlab_course.exercises import Attempt, NotYet, checker


def _game(table: Tensor):
    """The value function of a game, as learners call it: masks [how many, n] -> [how many]."""
    n = len(table).bit_length() - 1

    def value(masks):
        masks = torch.as_tensor(masks)
        if masks.ndim != 2 or masks.shape[1] != n:
            raise ValueError(f"value needs masks of shape [how many, {n}], and got {tuple(masks.shape)}")
        if ((masks != 0) & (masks != 1)).any():
            raise ValueError("a mask holds 1 (the token stands) or 0 (it is replaced)")
        return table[(masks.long() * 2 ** torch.arange(n)).sum(1)].clone()

    return value


def _random_game(n: int, seed: int):
    return _game(random(2**n, seed=seed) * 2 + 1)


def _full(value, n: int) -> Tensor:
    return value(torch.ones(1, n))


def _empty(value, n: int) -> Tensor:
    return value(torch.zeros(1, n))


def _masks(order: Tensor) -> Tensor:
    """Step by step, players are taken out in this order: [step, player]."""
    return (order.argsort() >= torch.arange(len(order) + 1)[:, None]).float()


@declare(
    "11.1", axes="player", says="In three games: the fall of the value when one token alone is replaced."
)
class Occlusion:
    cases = ((_random_game(3, 0), 3), (_random_game(5, 1), 5), (_random_game(1, 2), 1))

    def right(value, n):
        return _full(value, n) - value(1 - torch.eye(n))

    def sign(value, n):
        """The sign is turned: a token whose loss lowers the metric must score above zero. Take the whole
        prompt's value minus the value without the token."""
        return value(1 - torch.eye(n)) - _full(value, n)

    def alone(value, n):
        """You put each token alone into an empty prompt. Occlusion takes one token out of the whole
        prompt."""
        return value(torch.eye(n)) - _empty(value, n)

    def not_subtracted(value, n):
        """These are the values of the prompts without each token. Subtract them from the value of the whole
        prompt."""
        return value(1 - torch.eye(n))

    def from_the_empty(value, n):
        """You compare with the empty prompt. Compare with the whole one."""
        return value(1 - torch.eye(n)) - _empty(value, n)

    def stay_out(value, n):
        """The tokens taken out stay out: by the last one the prompt is empty. Put each token back before
        you take out the next."""
        return _full(value, n) - value(_masks(torch.arange(n)))[1:]

    def sizes(value, n):
        """You took sizes. A token that speaks against the answer scores below zero."""
        return Occlusion.right(value, n).abs()


def _joined(value, order: Tensor) -> Tensor:
    """What each player adds when they join in this order."""
    values = value(1 - _masks(order))
    return (values[1:] - values[:-1])[order.argsort()]


@declare(
    "11.2",
    axes="player",
    tolerance=1e-3,
    says="Efficient (shares add up), symmetric, and equal to the mean over all orders, in four games.",
)
class Shapley:
    cases = ((_random_game(3, 3), 3), (_random_game(4, 4), 4), (_random_game(2, 5), 2))

    def right(value, n):
        return torch.stack([_joined(value, torch.tensor(order)) for order in permutations(range(n))]).mean(0)

    def banzhaf(value, n):
        """You average over all masks with equal weight. That is the Banzhaf value: its shares do not add up
        to the whole. Weigh each size of mask so that every size counts the same."""
        masks = torch.tensor(list(product((0, 1), repeat=n)))
        return (2 * masks - 1.0).T @ value(masks) / 2 ** (n - 1)

    def occlusion(value, n):
        """This is occlusion: what each token adds to the full prompt. Average over all the prompts it could
        join."""
        return Occlusion.right(value, n)

    def one_order(value, n):
        """You let the tokens join in one order only, and the first comers take what they share with the
        others. Average over all orders."""
        return _joined(value, torch.arange(n))

    def leaving_in_one_order(value, n):
        """You let the tokens leave in one order only. Average over all orders."""
        return _joined(value, torch.arange(n).flip(0))

    def sum_over_orders(value, n):
        """Your values are the sum over all orders. Divide by the number of orders."""
        return Shapley.right(value, n) * factorial(n)

    def sign(value, n):
        """The sign is turned: take the value with the token minus the value without it."""
        return -Shapley.right(value, n)

    def sum_over_sizes(value, n):
        """Your values are the sum over the sizes of masks. Take the mean over the sizes: divide by n."""
        return Shapley.right(value, n) * n

    def alone(value, n):
        """You put each token alone into an empty prompt. Average over all the prompts it could join."""
        return Occlusion.alone(value, n)

    def otherwise(found, value, n):
        expected = Shapley.right(value, n)
        whole = (_full(value, n) - _empty(value, n)).item()
        ratio = found.sum() / whole
        if close(found, ratio * expected, 1e-3) and abs(ratio - 1) > 1e-3:
            return f"Your shares are the right ones times {ratio:.3g}. What do you divide by?"
        if abs(found.sum() - whole) <= 1e-3:
            told = "The sum is right, the shares are not: every order must count, and once."
            return f"{only_wrong(found, expected)} {told}"
        sums = f"Your shares add up to {found.sum():.3f}; the whole, all tokens minus none, is {whole:.3f}."
        question = "Does every size of mask have the same total weight?"
        return f"{sums} Shapley values always add up (efficiency). {question}"

    def further(attempt):
        twins = _game(torch.tensor([0.0, 3.0, 3.0, 4.0]))
        found = attempt.tensor(twins, 2, shape=(2,), axes="player")
        unequal = f"Two tokens that are alike must share equally, [2, 2]; yours get {found.tolist()}."
        must_equal(found, torch.tensor([2.0, 2.0]), {}, 1e-3, otherwise=lambda: unequal)


def _bent(a: Tensor, b: Tensor):
    """The function a·x + b·x² + (sum of x)²/2, its gradient, and a list of where that was asked for."""
    shape, asked = tuple(a.shape), []

    def gradient(at):
        if at.shape != shape:
            raise ValueError(f"gradient needs one input of shape {shape}, and got {tuple(at.shape)}")
        asked.append(at)
        return a + 2 * b * at + at.sum()

    return (lambda at: (a * at + b * at**2).sum() + at.sum() ** 2 / 2), gradient, asked


def _mean(gradient, x, source, steps):
    """The gradient, averaged along the way from source to x."""
    shares = ((k + 0.5) / steps for k in range(steps))
    return torch.stack([gradient(source + share * (x - source)) for share in shares]).mean(0)


def _integrated(gradient, x, source, steps):
    return (_mean(gradient, x, source, steps) * (x - source)).sum(1)


class Integrals:
    def at_the_prompt(gradient, x, source, steps):
        """You took the gradient at the prompt itself: that is gradient × difference. Average it along the
        way from source to x."""
        return (gradient(x) * (x - source)).sum(1)

    def no_way(gradient, x, source, steps):
        """You averaged the gradients and did not multiply with the way, x − source."""
        return _mean(gradient, x, source, steps).sum(1)

    def from_zero(gradient, x, source, steps):
        """The way begins at zero here, not at source."""
        return _integrated(gradient, x, torch.zeros_like(x), steps)

    def added_up(gradient, x, source, steps):
        """You added the gradients up. Divide by the number of steps."""
        return _integrated(gradient, x, source, steps) * steps

    def sign(gradient, x, source, steps):
        """The sign is turned: multiply with x − source, not source − x."""
        return -_integrated(gradient, x, source, steps)

    def times_x(gradient, x, source, steps):
        """You multiplied with x. The way is x − source; x alone is right only when source is zero."""
        return (_mean(gradient, x, source, steps) * x).sum(1)

    def mean_over_numbers(gradient, x, source, steps):
        """You took the mean over the numbers of a token. Add them up: `.sum(-1)`."""
        return (_mean(gradient, x, source, steps) * (x - source)).mean(1)

    def sizes(gradient, x, source, steps):
        """You took sizes. Keep the signs, or the scores do not add up."""
        return (_mean(gradient, x, source, steps) * (x - source)).abs().sum(1)

    def length(gradient, x, source, steps):
        """You took a length. Add up with signs: `.sum(-1)`."""
        return (_mean(gradient, x, source, steps) * (x - source)).norm(dim=1)


def _complete(attempt: Attempt, seed: int, shape: tuple[int, int], steps: int) -> None:
    """Sums of any kind pass, if they are as close as sums of so many steps are to each other."""
    a, b, x, source = (random(*shape, seed=seed + more) for more in (0, 10, 20, 30))
    function, gradient, asked = _bent(a, b)
    case = gradient, x, source, steps
    found, times = attempt.tensor(*case, shape=shape[:1], axes="pos"), len(asked)
    is_like(found, {why: wrong(*case) for why, wrong in mistakes_in(Integrals).items()}, 1e-3)
    expected, whole = _integrated(*case), function(x) - function(source)
    coarse = 4 * (Integrals.at_the_prompt(*case) - expected).abs() / steps
    rises = f"the function rises by {whole:.3f} from source to x. Integrated gradients must add up to that"
    cover = "(completeness). Do your points cover the whole way, evenly?"
    off = abs(found.sum() - whole) > 0.02 * max(1, whole.abs()) + coarse.sum()
    refuse(off, f"The scores add up to {found.sum():.3f}; {rises} {cover}")
    must_equal(found, expected, {}, 0.02 + coarse.max().item())
    refuse(times < steps, f"You asked for the gradient {times} times; {steps} steps were wanted.")


@checker("11.3")
def check_integrated_gradients(attempt: Attempt) -> str:
    for seed, shape, steps in ((0, (3, 4), 200), (1, (1, 2), 300), (2, (5, 3), 50)):
        _complete(attempt, seed, shape, steps)
    a, x, source = (random(2, 3, seed=seed) for seed in (5, 15, 25))
    found = attempt.tensor(lambda at: a.clone(), x, source, 5, shape=(2,), axes="pos")
    flat = "When the gradient is the same everywhere, its average is that gradient. Yours is not"
    points = f"{flat}: do you divide by as many points as you add up?"
    must_equal(found, (a * (x - source)).sum(1), {}, otherwise=lambda: points)
    x, source = random(2, 3, seed=16), random(2, 3, seed=26)
    curve = lambda at: at.sum() ** 3 * torch.ones_like(at)  # of (sum of x)^4 / 4
    rise = (x.sum() ** 4 - source.sum() ** 4) / 4
    found = attempt.tensor(curve, x, source, 400, shape=(2,), axes="pos")
    bends = "On a function that bends, the scores are off. Take points on the straight way from source to x"
    evenly = f"{bends}, one for each step, evenly from 0 to 1."
    expected = (x - source).sum(1) * rise / (x - source).sum()
    must_equal(found, expected, {}, 0.02, otherwise=lambda: evenly)
    return "Complete on five functions: the scores add up to what the function rises by."


class Curves:
    def by_size(value, scores):
        """You sorted by size. A score below zero comes last: sort with the sign."""
        return _curve(value, scores.abs())

    def lowest_first(value, scores):
        """You replace the lowest score first. The highest comes first."""
        return _curve(value, -scores)

    def put_back(value, scores):
        """You put each token back before replacing the next. Tokens stay replaced."""
        n, order = len(scores), scores.argsort(descending=True)
        return value(torch.cat([torch.ones(1, n), 1 - torch.eye(n)[order]]))

    def insertion(value, scores):
        """You put tokens back into an empty prompt: that is the insertion curve."""
        return value(1 - _masks(scores.argsort(descending=True)))

    def one_late(value, scores):
        """Every token goes one step too late: after step 1 the highest score is out already."""
        return _curve(value, scores)[[0, *range(len(scores))]]

    def one_early(value, scores):
        """Every token goes one step too early: the first value is that of the whole prompt."""
        return _curve(value, scores)[[*range(1, len(scores) + 1), len(scores)]]

    def falls(value, scores):
        """You return how far the value has fallen. The curve holds the values themselves."""
        return _curve(value, scores)[0] - _curve(value, scores)

    def ranks(value, scores):
        """You used the rank of each token as if it were a position. `argsort` gives positions."""
        return value(_masks(scores.argsort(descending=True).argsort()))

    def left_to_right(value, scores):
        """You replaced the tokens from left to right. Replace them by their scores."""
        return value(_masks(torch.arange(len(scores))))


def _curve(value, scores: Tensor) -> Tensor:
    return value(_masks(scores.argsort(descending=True)))


@checker("11.4")
def check_deletion_curve(attempt: Attempt) -> str:
    for n, seed in ((4, 6), (6, 7), (2, 8)):
        case = _random_game(n, seed), torch.tensor([-2.0, 0.5, 1.0, -0.1, 3.0, -0.7])[:n] * (1 + seed)
        found = attempt(*case)
        short = isinstance(found, Tensor) and found.shape == (n,)
        first = "the whole prompt first, then one for each token replaced."
        refuse(short, f"The curve has {n} values and needs {n + 1}: {first}")
        compare(attempt, case, _curve, mistakes_in(Curves), "step")
    return "From the whole prompt to none of it, highest score first, in three games."


def _patterns(layers: int, heads: int, n: int, seed: int) -> tuple[Tensor]:
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    return (random(layers, heads, n, n, seed=seed).masked_fill(future, -torch.inf).softmax(-1),)


def _rolled(steps: Tensor) -> Tensor:
    """The last layer stands on the left."""
    return reduce(torch.matmul, steps.flip(0))


def _kept(patterns: Tensor) -> Tensor:
    return 0.5 * patterns.mean(1) + 0.5 * torch.eye(patterns.shape[-1])


@declare(
    "11.5",
    axes="query_pos key_pos",
    says="Rows sum to 1, nothing comes from the future, and the layers are in order, on three stacks of "
    "patterns.",
)
class Rollout:
    cases = (_patterns(3, 2, 4, 0), _patterns(1, 3, 5, 1), _patterns(4, 1, 3, 2))

    def right(patterns):
        return _rolled(_kept(patterns))

    def wrong_order(patterns):
        """You multiplied the layers in the wrong order: the last layer reads what the one before it made,
        so it stands on the left."""
        return _rolled(_kept(patterns.flip(0)))

    def no_residual(patterns):
        """You left out that a position also keeps itself (the residual stream): 0.5 · attention + 0.5 ·
        identity in each layer."""
        return _rolled(patterns.mean(1))

    def averaged(patterns):
        """You averaged the layers. Attention in one layer reads what attention in the layer before made:
        multiply them."""
        return _kept(patterns).mean(0)

    def place_by_place(patterns):
        """You multiplied place by place (`*`). Following attention through a position in between is a
        matrix product (`@`)."""
        return _kept(patterns).prod(0)

    def last_layer(patterns):
        """This is the last layer only. Multiply all layers."""
        return _kept(patterns)[-1]

    def first_head(patterns):
        """You follow the first head only. Take the mean over the heads."""
        return _rolled(_kept(patterns[:, :1]))

    def without_the_last(patterns):
        """The last layer is missing. Multiply all layers."""
        return _rolled(_kept(patterns[:-1])) if len(patterns) > 1 else torch.eye(patterns.shape[-1])

    def identity_once(patterns):
        """The identity is mixed in once, at the end. Each layer keeps half of what was there."""
        return 0.5 * _rolled(patterns.mean(1)) + 0.5 * torch.eye(patterns.shape[-1])

    def swapped(patterns):
        """Rows and columns are swapped: row q says where position q comes from."""
        return Rollout.right(patterns).T

    def added_heads(patterns):
        """You added the heads up. Take their mean, or rows no longer sum to 1."""
        return _rolled(_kept(patterns.sum(1, keepdim=True)))

    def not_halved(patterns):
        """You added the identity without halving: rows must go on summing to 1."""
        return _rolled(2 * _kept(patterns))

    def otherwise(found, patterns):
        sums = found.sum(1)
        if close(sums, torch.ones(len(sums))):
            return only_wrong(found, Rollout.right(patterns))
        return f"Each row must sum to 1; your rows sum to {[round(v, 3) for v in sums.tolist()]}."


MOST_PLAYERS, MATTERS, UNSEEN = 8, 0.15, 0.05  # the last two are shares of the whole


@checker("11.6")
def check_blind_spot(attempt: Attempt, model) -> str:
    said = attempt()
    words = isinstance(said, (tuple, list)) and len(said) == 3 and all(isinstance(each, str) for each in said)
    refuse(not words, f"Return three texts: a prompt, its answer, a rival. You returned {said!r:.80}.")
    prompt, answer, rival = said
    try:
        metric = ml.logit_difference(ml.single_token(model, answer), ml.single_token(model, rival))
        tokens = model.to_tokens(prompt)
        commas = _blind(*_played(model, tokens, ",", metric))
        refuse(
            not commas,
            "Occlusion sees every token that matters here: each with a Shapley value of at least "
            f"{MATTERS:.0%} of the whole costs more than {UNSEEN:.0%} when it alone is replaced. Give the "
            "answer two reasons, each of which is enough.",
        )
        stops = _blind(*_played(model, tokens, ".", metric))
    except ml.PromptError as error:
        raise NotYet(str(error)) from None
    word = lambda place: repr(model.to_string(tokens[0, place : place + 1]))
    both = [place for place in commas if place in stops]
    refuse(
        not both,
        f"With commas occlusion does not see {word(commas[0])}, and with full stops it does (or the token no "
        "longer matters). The same token must pass both.",
    )
    return f"{word(both[0])} matters and occlusion does not see it, with commas and with full stops."


def _played(model, tokens, by: str, metric) -> tuple[Tensor, Tensor, Tensor]:
    """Exact Shapley values, occlusion, and the whole they are measured by."""
    source = ml.baseline_tokens(model, tokens, by)
    n = int((tokens != source).sum())
    refuse(
        not 2 <= n <= MOST_PLAYERS,
        f"Replaced by {by!r}, {n} tokens play (all that are not {by!r} already): at least two and "
        "at most eight may.",
    )
    full = input_game(model, tokens, source, metric).full[0].item()
    why = f"The model must prefer your answer by a logit or more; the difference is {full:.1f}."
    refuse(full < 1, why)
    exact = ml.shapley_values(model, tokens, source, metric)
    whole = exact.whole[0]
    refuse(whole < 1, f"The tokens bring only {whole:.2f} logits beside {by!r}: make it one or more.")
    return exact.values, ml.occlusion(model, tokens, source, metric).values, whole


def _blind(exact: Tensor, alone: Tensor, whole: Tensor) -> list[int]:
    """The positions that matter and that occlusion does not see, largest first."""
    places = ((exact >= MATTERS * whole) & (alone <= UNSEEN * whole)).nonzero()[:, 0]
    return places[exact[places].argsort(descending=True)].tolist()
