"""Checks of notebook 26, sparse autoencoders."""

import torch
from torch.nn.functional import normalize

from mechlab_course.checking import close, declare, only_wrong, random, refuse


def _weights(tokens: int, d_in: int, d_sae: int, k: int, shift: float, seed: int):
    W_enc, b_enc = random(d_in, d_sae, seed=seed + 1), random(d_sae, seed=seed + 2) + shift
    return random(tokens, d_in, seed=seed), W_enc, b_enc, random(d_in, seed=seed + 3), k


def _kept(before, by, k):
    """`before` where `by` is among the k largest of its token, 0 elsewhere."""
    best = by.topk(k, dim=-1).indices
    return torch.zeros_like(before).scatter(-1, best, before.gather(-1, best))


def _largest(before, k):
    return _kept(before, before, k).relu()


@declare(
    "26.1",
    axes="token, d_sae",
    says="At most k features a token, none below zero, on three sets of weights.",
)
class Encode:
    cases = (_weights(5, 4, 7, 2, 0.0, 0), _weights(3, 6, 5, 3, -3.0, 1), _weights(9, 3, 8, 1, 0.5, 2))

    def right(x, W_enc, b_enc, b_dec, k):
        return _largest((x - b_dec) @ W_enc + b_enc, k)

    def no_b_dec(x, W_enc, b_enc, b_dec, k):
        """Take `b_dec` off before you encode: features describe what is left."""
        return _largest(x @ W_enc + b_enc, k)

    def b_dec_added(x, W_enc, b_enc, b_dec, k):
        """You add `b_dec`. Take it off: decoding will add it again."""
        return _largest((x + b_dec) @ W_enc + b_enc, k)

    def no_b_enc(x, W_enc, b_enc, b_dec, k):
        """Where is `b_enc`?"""
        return _largest((x - b_dec) @ W_enc, k)

    def no_relu(x, W_enc, b_enc, b_dec, k):
        """There is no ReLU: where fewer than k numbers are above zero, yours keep negative ones."""
        before = (x - b_dec) @ W_enc + b_enc
        return _kept(before, before, k)

    def largest_in_size(x, W_enc, b_enc, b_dec, k):
        """You keep the k largest in size. A very negative number is a feature that is absent."""
        before = (x - b_dec) @ W_enc + b_enc
        return _kept(before, before.abs(), k)

    def largest_in_size_then_relu(x, W_enc, b_enc, b_dec, k):
        """Of the k largest in size you keep those above zero. Take the k largest; sizes do not count."""
        before = (x - b_dec) @ W_enc + b_enc
        return _kept(before, before.abs(), k).relu()

    def along_tokens(x, W_enc, b_enc, b_dec, k):
        """The k are chosen for each token, along the features; yours are chosen along the tokens."""
        return _largest(((x - b_dec) @ W_enc + b_enc).T, min(k, len(x))).T

    def without_the_kth(x, W_enc, b_enc, b_dec, k):
        """You kept only those above the k-th largest: that one counts too."""
        before = (x - b_dec) @ W_enc + b_enc
        return torch.where(before > before.topk(k).values[:, -1:], before.relu(), 0.0)

    def all_above_zero(x, W_enc, b_enc, b_dec, k):
        """You keep every feature above zero. Keep the k largest of them."""
        return ((x - b_dec) @ W_enc + b_enc).relu()

    def ones(x, W_enc, b_enc, b_dec, k):
        """The largest ones should keep their strengths; yours are all 1."""
        return (_largest((x - b_dec) @ W_enc + b_enc, k) > 0).float()


def _reconstructed(tokens: int, d_in: int, d_sae: int, l1: float, seed: int):
    x, back = random(tokens, d_in, seed=seed), random(tokens, d_in, seed=seed + 1)
    return x, back, random(tokens, d_sae, seed=seed + 2).relu(), l1


def _errors(x, back):
    """The squared error of each token."""
    return (x - back).pow(2).sum(1)


@declare(
    "26.2",
    axes="a single number",
    says="Error and penalty, each added up over a token, on average over tokens; three times.",
)
class PenalisedLoss:
    cases = (
        _reconstructed(4, 3, 6, 0.7, 0),
        _reconstructed(7, 5, 4, 2.0, 1),
        _reconstructed(3, 2, 9, 0.0, 2),
    )

    def right(x, back, features, l1):
        return (_errors(x, back) + l1 * features.sum(1)).mean()

    def mean_error(x, back, features, l1):
        """The squared error is added up over the dimensions of a token; yours is their mean."""
        return ((x - back).pow(2).mean(1) + l1 * features.sum(1)).mean()

    def mean_penalty(x, back, features, l1):
        """The activities of a token are added up; yours is their mean."""
        return (_errors(x, back) + l1 * features.mean(1)).mean()

    def mean_of_all(x, back, features, l1):
        """Both are added up over a token before the mean over tokens; you took the mean of all numbers."""
        return (x - back).pow(2).mean() + l1 * features.mean()

    def sum_over_tokens(x, back, features, l1):
        """Take the mean over tokens; yours is the sum."""
        return (_errors(x, back) + l1 * features.sum(1)).sum()

    def counted(x, back, features, l1):
        """The penalty is the sum of the activities. Yours counts the active features, which has no slope to
        follow."""
        return (_errors(x, back) + l1 * (features > 0).sum(1)).mean()

    def half(x, back, features, l1):
        """There is no half in front of the error."""
        return (0.5 * _errors(x, back) + l1 * features.sum(1)).mean()

    def no_penalty(x, back, features, l1):
        """The penalty is missing."""
        return _errors(x, back).mean()

    def sign(x, back, features, l1):
        """You take the penalty off, which would reward activity."""
        return (_errors(x, back) - l1 * features.sum(1)).mean()

    def squared_penalty(x, back, features, l1):
        """The penalty is the sum, not the sum of squares: squares hardly punish small activities, so none
        reaches zero."""
        return (_errors(x, back) + l1 * features.pow(2).sum(1)).mean()

    def root(x, back, features, l1):
        """The error is squared, without a root."""
        return (_errors(x, back).sqrt() + l1 * features.sum(1)).mean()

    def not_squared(x, back, features, l1):
        """The error is squared; yours takes sizes."""
        return ((x - back).abs().sum(1) + l1 * features.sum(1)).mean()

    def both_weighed(x, back, features, l1):
        """`l1` weighs the penalty only."""
        return (l1 * (_errors(x, back) + features.sum(1))).mean()

    def error_weighed(x, back, features, l1):
        """`l1` weighs the penalty, not the error."""
        return (l1 * _errors(x, back) + features.sum(1)).mean()

    def no_l1(x, back, features, l1):
        """Where is `l1`?"""
        return (_errors(x, back) + features.sum(1)).mean()

    def penalty_added_up(x, back, features, l1):
        """The mean over tokens holds for the penalty too."""
        return _errors(x, back).mean() + l1 * features.sum()


def _copied(tokens: int, d_in: int, error: float, seed: int):
    x = 2 + random(tokens, d_in, seed=seed) * torch.linspace(0.2, 4, d_in)
    return x, x + error * random(tokens, d_in, seed=seed + 1)


def _ratio(error, around, dim=None):
    """One squared length over the other; along an axis the mean of such ratios."""
    return (error.pow(2).sum(dim) / around.pow(2).sum(dim)).mean()


@declare("26.3", axes="a single number")
class Unexplained:
    cases = (_copied(6, 3, 0.5, 0), _copied(40, 5, 0.5, 1), _copied(9, 4, 4.0, 2))

    def right(x, back):
        return _ratio(x - back, x - x.mean(0))

    def around_zero(x, back):
        """Variance is measured around the mean over tokens; yours around zero, which flatters."""
        return _ratio(x - back, x)

    def explained(x, back):
        """That is the share that is explained. The share that is left is wanted."""
        return 1 - _ratio(x - back, x - x.mean(0))

    def one_mean(x, back):
        """Each dimension has a mean of its own: `x.mean(0)`. Yours is one mean for all numbers."""
        return _ratio(x - back, x - x.mean())

    def mean_over_dimensions(x, back):
        """The mean is over tokens; yours is over the dimensions of each token."""
        return _ratio(x - back, x - x.mean(1, keepdim=True))

    def share_a_dimension(x, back):
        """Add up over all dimensions before you divide; yours is the mean of one share for each dimension."""
        return _ratio(x - back, x - x.mean(0), dim=0)

    def share_a_token(x, back):
        """Add up over all tokens before you divide; yours is the mean of one share for each token."""
        return _ratio(x - back, x - x.mean(0), dim=1)

    def root(x, back):
        """The lengths are squared: this is the root of what is wanted."""
        return _ratio(x - back, x - x.mean(0)).sqrt()

    def sizes(x, back):
        """Square first, then add up: yours takes sizes."""
        return (x - back).abs().sum() / (x - x.mean(0)).abs().sum()

    def by_what_came_back(x, back):
        """Divide by the variance of x, not of what came back."""
        return _ratio(x - back, back - back.mean(0))

    def not_divided(x, back):
        """The error is not divided by anything."""
        return (x - back).pow(2).sum()

    def one_less(x, back):
        """Each is one sum over everything. `torch.var` divides by one less than the number of tokens."""
        return (x - back).pow(2).mean() / x.var(0).mean()

    def mean_error_off(x, back):
        """Take the error itself; yours takes the mean off it first."""
        return _ratio(x - back - (x - back).mean(0), x - x.mean(0))

    def further(attempt):
        x = random(8, 3, seed=5) + 4
        run = lambda back: attempt.tensor(x, back, shape=(), axes="a single number")
        refuse(abs(run(x.clone())) > 1e-6, "A perfect copy leaves nothing: the share must be 0.")
        refuse(
            abs(run(x.mean(0).expand_as(x).clone()) - 1) > 1e-4,
            "Whoever gives back the mean each time explains nothing: the share left must be 1.",
        )
        return "0 for a perfect copy, 1 for the mean, and right on three cases in between."


def _decoded(tokens: int, d_in: int, d_sae: int, index: int, value: float, seed: int):
    W_dec, features = random(d_sae, d_in, seed=seed + 1), random(tokens, d_sae, seed=seed + 2).relu()
    return random(tokens, d_in, seed=seed), features, W_dec, random(d_in, seed=seed + 3), index, value


def _set(features, index, value):
    features = features.clone()
    features[:, index] = value
    return features


@declare(
    "26.4",
    axes="token, d_in",
    says="One feature has its new value, and everything else, the unexplained part too, is as it was.",
)
class SetFeature:
    cases = (_decoded(9, 3, 6, 2, 5.0, 0), _decoded(12, 5, 4, 3, 0.0, 1), _decoded(11, 6, 9, 0, -1.5, 2))

    def right(x, features, W_dec, b_dec, index, value):
        return x + (value - features[:, [index]]) * W_dec[index]

    def reconstruction(x, features, W_dec, b_dec, index, value):
        """You hand back the reconstruction: what the dictionary does not explain is lost, in every token.
        Change x itself."""
        return _set(features, index, value) @ W_dec + b_dec

    def reconstruction_without_b_dec(x, features, W_dec, b_dec, index, value):
        """You hand back a reconstruction, and without b_dec. Change x itself."""
        return _set(features, index, value) @ W_dec

    def nothing(x, features, W_dec, b_dec, index, value):
        """Nothing is changed. The feature should be at its new value."""
        return x

    def on_top(x, features, W_dec, b_dec, index, value):
        """You add the new value on top of the old one. Take the old one off."""
        return x + value * W_dec[index]

    def sign(x, features, W_dec, b_dec, index, value):
        """The sign is turned round: new minus old."""
        return x + (features[:, [index]] - value) * W_dec[index]

    def old_taken_off(x, features, W_dec, b_dec, index, value):
        """The old value comes off, the new one never goes on."""
        return x - features[:, [index]] * W_dec[index]

    def scaled(x, features, W_dec, b_dec, index, value):
        """You scaled the direction to length 1. Its length is part of what a feature contributes."""
        return x + (value - features[:, [index]]) * normalize(W_dec[index], dim=0)

    def only_where_active(x, features, W_dec, b_dec, index, value):
        """Only tokens where the feature is active are changed. Set it everywhere."""
        return x + (value - features[:, [index]]) * (features[:, [index]] > 0) * W_dec[index]

    def b_dec_added(x, features, W_dec, b_dec, index, value):
        """You added `b_dec`. It is in x already."""
        return x + (value - features[:, [index]]) * W_dec[index] + b_dec

    def every_feature(x, features, W_dec, b_dec, index, value):
        """Every feature is set. Only one may change."""
        return x + (value - features) @ W_dec


def _dictionaries(rows: int, others: int, d: int, threshold: float, seed: int):
    """Two dictionaries of directions, some long and some short."""
    A = normalize(random(rows, d, seed=seed + rows), dim=1)
    B = normalize(random(others + 1, d, seed=seed + others + 1), dim=1)[1:]
    return (
        A * torch.linspace(0.6, 1.4, rows)[:, None],
        B * torch.linspace(1.3, 0.7, others)[:, None],
        threshold,
    )


def _cosines(A, B):
    return normalize(A, dim=1) @ normalize(B, dim=1).T


def _above(values, threshold):
    return (values > threshold).float().mean()


def _by_number(A, B, threshold):
    """For each number that both dictionaries have, 1. if the two directions are similar."""
    return (_cosines(A, B).diagonal() > threshold).float()


@declare(
    "26.5",
    axes="a single number",
    says="Best partner by cosine, for each direction of the first dictionary, on four pairs of dictionaries.",
)
class Shared:
    cases = (
        _dictionaries(61, 37, 7, 0.65, 0),
        _dictionaries(29, 83, 9, 0.65, 1),
        _dictionaries(53, 53, 7, 0.7, 2),
        _dictionaries(97, 71, 9, 0.6, 3),
    )

    def right(A, B, threshold):
        return _above(_cosines(A, B).max(1).values, threshold)

    def by_number(A, B, threshold):
        """Feature 3 of one dictionary has nothing to do with feature 3 of the other: look for the best
        partner."""
        return _by_number(A, B, threshold).mean()

    def not_scaled(A, B, threshold):
        """Scale the directions to length 1 first: a long one is not a similar one."""
        return _above((A @ B.T).max(1).values, threshold)

    def sizes(A, B, threshold):
        """Opposite directions are different features: a cosine of -1 is no match."""
        return _above(_cosines(A, B).abs().max(1).values, threshold)

    def exchanged(A, B, threshold):
        """For each direction of the *first* dictionary, its best partner in the second; yours is the other
        way round."""
        return _above(_cosines(A, B).max(0).values, threshold)

    def pairs(A, B, threshold):
        """You count pairs. Count directions of the first dictionary that have a partner."""
        return _above(_cosines(A, B), threshold)

    def first_scaled(A, B, threshold):
        """Scale both dictionaries to length 1, not only the first."""
        return _above((normalize(A, dim=1) @ B.T).max(1).values, threshold)

    def second_scaled(A, B, threshold):
        """Scale both dictionaries to length 1, not only the second."""
        return _above((A @ normalize(B, dim=1).T).max(1).values, threshold)

    def mean_cosine(A, B, threshold):
        """You average the cosines. Count those above the threshold."""
        return _cosines(A, B).max(1).values.mean()

    def count(A, B, threshold):
        """That is how many; the share is wanted."""
        return len(A) * _above(_cosines(A, B).max(1).values, threshold)

    def without_partner(A, B, threshold):
        """That is the share without a partner."""
        return 1 - _above(_cosines(A, B).max(1).values, threshold)

    def otherwise(found, A, B, threshold):
        if close(found, _by_number(A, B, threshold).sum() / len(A)):
            return " ".join(Shared.by_number.__doc__.split())
        return only_wrong(found, Shared.right(A, B, threshold))
