"""Checks of notebook 11, input attribution. Most play small games whose values are known for every mask."""

from itertools import permutations

import torch
from torch import Tensor

from mechlab_course.checking import close, is_like, only_wrong, random
from mechlab_course.exercises import Attempt, NotYet, checker


def _table(n: int, seed: int) -> Tensor:
    """A value for every mask of n players."""
    return random(2**n, seed=seed) * 2 + 1


def _game(table: Tensor, n: int):
    """The value function of a game, as learners call it: masks [how many, n] -> [how many]."""

    def value(masks):
        masks = torch.as_tensor(masks)
        if masks.ndim != 2 or masks.shape[1] != n:
            raise ValueError(f"value needs masks of shape [how many, {n}], and got {tuple(masks.shape)}")
        if ((masks != 0) & (masks != 1)).any():
            raise ValueError("a mask holds 1 (the token stands) or 0 (it is replaced)")
        return table[(masks.long() * 2 ** torch.arange(n)).sum(1)].clone()

    return value


def _single(value, mask) -> Tensor:
    return value(torch.as_tensor(mask)[None])[0]


def _without(n: int) -> Tensor:
    return 1 - torch.eye(n)


@checker("11.1")
def check_occlusion(attempt: Attempt) -> str:
    for n, seed in ((3, 0), (5, 1), (1, 2)):
        value = _game(_table(n, seed), n)
        full, empty = _single(value, torch.ones(n)), _single(value, torch.zeros(n))
        expected = full - value(_without(n))
        found = attempt.tensor(value, n, shape=(n,), axes="player")
        is_like(
            found,
            {
                "The sign is turned: a token whose loss lowers the metric must score above zero. Take the whole "
                "prompt's value minus the value without the token.": -expected,
                "You put each token alone into an empty prompt. Occlusion takes one token out of the whole prompt.": value(
                    torch.eye(n)
                )
                - empty,
                "These are the values of the prompts without each token. Subtract them from the value of the whole "
                "prompt.": value(_without(n)),
                "You compare with the empty prompt. Compare with the whole one.": value(_without(n)) - empty,
            }
            if n > 1
            else {},
        )
        if n > 1:
            several = torch.stack([_single(value, (torch.arange(n) > k).float()) for k in range(n)])
            is_like(
                found,
                {
                    "The tokens taken out stay out: by the last one the prompt is empty. Put each token back before "
                    "you take out the next.": full - several
                },
            )
        if not close(found, expected):
            sizes = "You took sizes. A token that speaks against the answer scores below zero."
            is_like(found, {sizes: expected.abs()})
            raise NotYet(only_wrong(found, expected))
    return "In three games: the fall of the value when one token alone is replaced."


def _shapley(table: Tensor, n: int) -> Tensor:
    """By its definition: the mean over all orders of what each player adds when it joins."""
    value, total = _game(table, n), torch.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        mask = torch.zeros(n)
        before = _single(value, mask)
        for player in order:
            mask[player] = 1
            after = _single(value, mask)
            total[player] += after - before
            before = after
    return total / len(orders)


def _banzhaf(value, n: int) -> Tensor:
    masks = torch.tensor([[i >> p & 1 for p in range(n)] for i in range(2**n)]).float()
    values = value(masks)
    return torch.stack([values[masks[:, p] == 1].mean() - values[masks[:, p] == 0].mean() for p in range(n)])


@checker("11.2")
def check_shapley(attempt: Attempt) -> str:
    for n, seed in ((3, 3), (4, 4), (2, 5)):
        table = _table(n, seed)
        value = _game(table, n)
        expected = _shapley(table, n)
        full, empty = _single(value, torch.ones(n)), _single(value, torch.zeros(n))
        found = attempt.tensor(value, n, shape=(n,), axes="player")
        steps = torch.stack([_single(value, (torch.arange(n) < k).float()) for k in range(n + 1)])
        if n > 2:
            is_like(
                found,
                {
                    "You average over all masks with equal weight. That is the Banzhaf value: its shares do not add up "
                    "to the whole. Weigh each size of mask so that every size counts the same.": _banzhaf(
                        value, n
                    ),
                    "This is occlusion: what each token adds to the full prompt. Average over all the prompts it could "
                    "join.": full - value(_without(n)),
                    "You let the tokens join in one order only, and the first comers take what they share with the "
                    "others. Average over all orders.": steps[1:] - steps[:-1],
                    "Your values are the sum over all orders. Divide by the number of orders.": expected
                    * torch.arange(1, n + 1).prod(),
                    "The sign is turned: take the value with the token minus the value without it.": -expected,
                    "Your values are the sum over the sizes of masks. Take the mean over the sizes: divide by n.": expected
                    * n,
                    "You put each token alone into an empty prompt. Average over all the prompts it could join.": value(
                        torch.eye(n)
                    )
                    - empty,
                },
            )
        ratio = found.sum() / (full - empty)
        if abs(ratio - 1) > 1e-3 and close(found, ratio * expected, 1e-3):
            raise NotYet(f"Your shares are the right ones times {ratio:.3g}. What do you divide by?")
        if abs(found.sum() - (full - empty)) > 1e-3:
            raise NotYet(
                f"Your shares add up to {found.sum():.3f}; the whole, all tokens minus none, is {full - empty:.3f}. "
                "Shapley values always add up (efficiency). Does every size of mask have the same total weight?"
            )
        if not close(found, expected, 1e-3):
            raise NotYet("The sum is right, the shares are not. " + only_wrong(found, expected))
    twins = torch.tensor([0.0, 3.0, 3.0, 4.0])  # two players alike
    found = attempt.tensor(_game(twins, 2), 2, shape=(2,), axes="player")
    if not close(found, torch.tensor([2.0, 2.0]), 1e-3):
        raise NotYet(f"Two tokens that are alike must share equally, [2, 2]; yours get {found.tolist()}.")
    return "Efficient (shares add up), symmetric, and equal to the mean over all orders, in four games."


@checker("11.3")
def check_integrated_gradients(attempt: Attempt) -> str:
    for seed, pos, d, steps in ((0, 3, 4, 200), (1, 1, 2, 300), (2, 5, 3, 50)):
        a, b = random(pos, d, seed=seed), random(pos, d, seed=seed + 10)
        x, source = random(pos, d, seed=seed + 20), random(pos, d, seed=seed + 30)
        asked: list[Tensor] = []

        def gradient(at, a=a, b=b, pos=pos, d=d, asked=asked):
            if at.shape != (pos, d):
                raise ValueError(f"gradient needs one input of shape {(pos, d)}, and got {tuple(at.shape)}")
            asked.append(at.detach().clone())
            return a + 2 * b * at + at.sum()  # of a·x + b·x² + (sum of x)²/2

        f = lambda at, a=a, b=b: (a * at + b * at**2).sum() + at.sum() ** 2 / 2
        end = (gradient(x) * (x - source)).sum(1)
        mean = lambda start, end, of=gradient, n=steps: torch.stack(
            [of(start + (k + 0.5) / n * (end - start)) for k in range(n)]
        ).mean(0)
        average = mean(source, x)
        expected = (average * (x - source)).sum(1)
        from_zero = (mean(torch.zeros_like(x), x) * x).sum(1)
        del asked[:]
        found = attempt.tensor(gradient, x, source, steps, shape=(pos,), axes="pos")
        is_like(
            found,
            {
                "You took the gradient at the prompt itself: that is gradient × input. Average it along the way from "
                "source to x.": end,
                "You averaged the gradients and did not multiply with the way, x − source.": average.sum(1),
                "The way begins at zero here, not at source.": from_zero,
                "You added the gradients up. Divide by the number of steps.": expected * steps,
                "The sign is turned: multiply with x − source, not source − x.": -expected,
                "You multiplied with x. The way is x − source; x alone is right only when source is zero.": (
                    average * x
                ).sum(1),
                "You took the mean over the numbers of a token. Add them up: `.sum(-1)`.": expected / d,
                "You took sizes. Keep the signs, or the scores do not add up.": (average * (x - source))
                .abs()
                .sum(1),
                "You took a length. Add up with signs: `.sum(-1)`.": (average * (x - source)).norm(dim=1),
            },
            1e-3,
        )
        whole = f(x) - f(source)
        if abs(found.sum() - whole) > 0.02 * max(1, whole.abs()) + 4 * (end - expected).abs().sum() / steps:
            raise NotYet(
                f"The scores add up to {found.sum():.3f}; the function rises by {whole:.3f} from source to x. Integrated "
                "gradients must add up to that (completeness). Do your points cover the whole way, evenly?"
            )
        if not close(found, expected, 0.02 + 4 * float((end - expected).abs().max()) / steps):
            raise NotYet(only_wrong(found, expected))
        if len(asked) < steps:
            raise NotYet(f"You asked for the gradient {len(asked)} times; {steps} steps were wanted.")
    a, x, source = (random(2, 3, seed=seed) for seed in (5, 15, 25))
    flat = attempt.tensor(lambda at: a.clone(), x, source, 5, shape=(2,), axes="pos")
    if not close(flat, (a * (x - source)).sum(1)):
        raise NotYet(
            "When the gradient is the same everywhere, its average is that gradient. Yours is not: do you divide by as "
            "many points as you add up?"
        )
    x, source = random(2, 3, seed=16), random(2, 3, seed=26)
    curve = lambda at: at.sum() ** 3 * torch.ones_like(at)  # of (sum of x)^4 / 4
    rise = (x.sum() ** 4 - source.sum() ** 4) / 4
    bent = attempt.tensor(curve, x, source, 400, shape=(2,), axes="pos")
    if not close(bent, (x - source).sum(1) * rise / (x - source).sum(), 0.02):
        raise NotYet(
            "On a function that bends, the scores are off. Take points on the straight way from source to x, one for each "
            "step, evenly from 0 to 1."
        )
    return "Complete on five functions: the scores add up to what the function rises by."


@checker("11.4")
def check_deletion_curve(attempt: Attempt) -> str:
    for n, seed in ((4, 6), (6, 7), (2, 8)):
        value = _game(_table(n, seed), n)
        scores = torch.tensor([-2.0, 0.5, 1.0, -0.1, 3.0, -0.7])[:n] * (1 + seed)
        order = scores.argsort(descending=True)
        masks = torch.ones(n + 1, n)
        for step, player in enumerate(order):
            masks[step + 1 :, player] = 0
        expected = value(masks)
        found = attempt(value, scores)
        if isinstance(found, Tensor) and found.shape == (n,):
            raise NotYet(
                f"The curve has {n} values and needs {n + 1}: the whole prompt first, then one for each token replaced."
            )
        found = attempt.tensor(value, scores, shape=(n + 1,), axes="step")
        if n > 2:
            ranks = scores.argsort(descending=True).argsort()
            single = torch.cat([torch.ones(1, n), _without(n)[order]])
            wrong_rank = torch.ones(n + 1, n)
            for step, player in enumerate(ranks):
                wrong_rank[step + 1 :, player] = 0
            ascending = torch.ones(n + 1, n)
            for step, player in enumerate(order.flip(0)):
                ascending[step + 1 :, player] = 0
            by_size = torch.ones(n + 1, n)
            for step, player in enumerate(scores.abs().argsort(descending=True)):
                by_size[step + 1 :, player] = 0
            is_like(
                found,
                {
                    "You sorted by size. A score below zero comes last: sort with the sign.": value(by_size),
                    "You replace the lowest score first. The highest comes first.": value(ascending),
                    "You put each token back before replacing the next. Tokens stay replaced.": value(single),
                    "You put tokens back into an empty prompt: that is the insertion curve.": value(
                        1 - masks
                    ),
                    "You used the rank of each token as if it were a position. `argsort` gives positions.": value(
                        wrong_rank
                    ),
                    "You replaced the tokens from left to right. Replace them by their scores.": value(
                        (torch.arange(n) >= torch.arange(n + 1)[:, None]).float()
                    ),
                },
            )
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "From the whole prompt to none of it, highest score first, in three games."


@checker("11.5")
def check_rollout(attempt: Attempt) -> str:
    for layers, heads, n, seed in ((3, 2, 4, 0), (1, 3, 5, 1), (4, 1, 3, 2)):
        patterns = random(layers, heads, n, n, seed=seed).masked_fill(
            torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf
        )
        patterns = patterns.softmax(-1)
        mean, eye = patterns.mean(1), torch.eye(n)
        rolled = lambda steps: torch.linalg.multi_dot(list(steps)) if len(steps) > 1 else steps[0]
        half = 0.5 * mean + 0.5 * eye
        expected = rolled(half.flip(0))
        found = attempt.tensor(patterns, shape=(n, n), axes="query_pos key_pos")
        if layers > 1:
            is_like(
                found,
                {
                    "You multiplied the layers in the wrong order: the last layer reads what the one before it made, so "
                    "it stands on the left.": rolled(half),
                    "You left out that a position also keeps itself (the residual stream): 0.5 · attention + 0.5 · "
                    "identity in each layer.": rolled(mean.flip(0)),
                    "You averaged the layers. Attention in one layer reads what attention in the layer before made: "
                    "multiply them.": half.mean(0),
                    "You multiplied place by place (`*`). Following attention through a position in between is a "
                    "matrix product (`@`).": half.prod(0),
                    "This is the last layer only. Multiply all layers.": half[-1],
                    "Rows and columns are swapped: row q says where position q comes from.": expected.T,
                },
            )
        if heads > 1:
            is_like(
                found,
                {
                    "You added the heads up. Take their mean, or rows no longer sum to 1.": rolled(
                        (0.5 * patterns.sum(1) + 0.5 * eye).flip(0)
                    )
                },
            )
        is_like(
            found,
            {
                "You added the identity without halving: rows must go on summing to 1.": rolled(
                    (mean + eye).flip(0)
                )
            },
        )
        if not close(found.sum(1), torch.ones(n)):
            raise NotYet(
                f"Each row must sum to 1; your rows sum to {[round(v, 3) for v in found.sum(1).tolist()]}."
            )
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "Rows sum to 1, nothing comes from the future, and the layers are in order, on three stacks of patterns."
