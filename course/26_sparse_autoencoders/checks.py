"""Checks of notebook 26, sparse autoencoders."""

import torch

from mechlab_course.checking import close, is_like, only_wrong, random
from mechlab_course.exercises import Attempt, NotYet, checker


def _encoded(x, W_enc, b_enc, b_dec, k):
    before = (x - b_dec) @ W_enc + b_enc
    best = before.topk(k, dim=-1)
    return torch.zeros_like(before).scatter(-1, best.indices, best.values.relu())


@checker("26.1")
def check_encode(attempt: Attempt) -> str:
    for tokens, d_in, d_sae, k, shift, seed in (
        (5, 4, 7, 2, 0.0, 0),
        (3, 6, 5, 3, -3.0, 1),
        (9, 3, 8, 1, 0.5, 2),
    ):
        x, W_enc, b_dec = (
            random(tokens, d_in, seed=seed),
            random(d_in, d_sae, seed=seed + 1),
            random(d_in, seed=seed + 3),
        )
        b_enc = random(d_sae, seed=seed + 2) + shift
        expected = _encoded(x, W_enc, b_enc, b_dec, k)
        found = attempt.tensor(x, W_enc, b_enc, b_dec, k, shape=(tokens, d_sae), axes="token, d_sae")
        before = (x - b_dec) @ W_enc + b_enc
        best, size = before.topk(k, dim=-1), before.abs().topk(k, dim=-1).indices
        keep = lambda values, where: torch.zeros_like(values).scatter(-1, where, values.gather(-1, where))
        mistakes = {
            "Take `b_dec` off before you encode: features describe what is left.": _encoded(
                x + 0, W_enc, b_enc, 0 * b_dec, k
            ),
            "You add `b_dec`. Take it off: decoding will add it again.": _encoded(x, W_enc, b_enc, -b_dec, k),
            "Where is `b_enc`?": _encoded(x, W_enc, 0 * b_enc, b_dec, k),
            "There is no ReLU: where fewer than k numbers are above zero, yours keep negative ones.": keep(
                before, best.indices
            ),
            "You keep the k largest in size. A very negative number is a feature that is absent.": keep(
                before, size
            ),
            "Of the k largest in size you keep those above zero. Take the k largest; sizes do not count.": keep(
                before, size
            ).relu(),
            "The k are chosen for each token, along the features; yours are chosen along the tokens.": torch.zeros_like(
                before
            ).scatter(
                0,
                before.topk(min(k, tokens), dim=0).indices,
                before.topk(min(k, tokens), dim=0).values.relu(),
            ),
            "You kept only those above the k-th largest: that one counts too.": torch.where(
                before > best.values[:, -1:], before.relu(), 0.0
            ),
            "You keep every feature above zero. Keep the k largest of them.": before.relu(),
            "The largest ones should keep their strengths; yours are all 1.": (
                _encoded(x, W_enc, b_enc, b_dec, k) > 0
            ).float(),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "At most k features a token, none below zero, on three sets of weights."


@checker("26.2")
def check_l1(attempt: Attempt) -> str:
    for tokens, d_in, d_sae, l1, seed in ((4, 3, 6, 0.7, 0), (7, 5, 4, 2.0, 1), (3, 2, 9, 0.0, 2)):
        x, back = random(tokens, d_in, seed=seed), random(tokens, d_in, seed=seed + 1)
        features = random(tokens, d_sae, seed=seed + 2).relu()
        error, penalty = (x - back).pow(2).sum(1), features.sum(1)
        expected = (error + l1 * penalty).mean()
        found = attempt.tensor(x, back, features, l1, shape=(), axes="a single number")
        mistakes = {
            "The squared error is added up over the dimensions of a token; yours is their mean.": (
                error / d_in + l1 * penalty
            ).mean(),
            "The activities of a token are added up; yours is their mean.": (
                error + l1 * penalty / d_sae
            ).mean(),
            "Both are added up over a token before the mean over tokens; you took the mean of all numbers.": (
                error / d_in + l1 * penalty / d_sae
            ).mean(),
            "Take the mean over tokens; yours is the sum.": (error + l1 * penalty).sum(),
            "The penalty is the sum of the activities. Yours counts the active features, which has no slope to follow.": (
                error + l1 * (features > 0).sum(1)
            ).mean(),
            "There is no half in front of the error.": (0.5 * error + l1 * penalty).mean(),
            "The penalty is missing.": error.mean(),
            "You take the penalty off, which would reward activity.": (error - l1 * penalty).mean(),
            "The penalty is the sum, not the sum of squares: squares hardly punish small activities, so none reaches zero.": (
                error + l1 * features.pow(2).sum(1)
            ).mean(),
            "The error is squared, without a root.": (error.sqrt() + l1 * penalty).mean(),
            "The error is squared; yours takes sizes.": ((x - back).abs().sum(1) + l1 * penalty).mean(),
            "`l1` weighs the penalty only.": (l1 * (error + penalty)).mean(),
            "`l1` weighs the penalty, not the error.": (l1 * error + penalty).mean(),
            "Where is `l1`?": (error + penalty).mean(),
            "The mean over tokens holds for the penalty too.": error.mean() + l1 * penalty.sum(),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "Error and penalty, each added up over a token, on average over tokens; three times."


@checker("26.3")
def check_unexplained(attempt: Attempt) -> str:
    for tokens, d_in, seed in ((6, 3, 0), (40, 5, 1), (9, 4, 2)):
        x = 2 + random(tokens, d_in, seed=seed) * torch.linspace(0.2, 4, d_in)
        back = x + (4.0 if seed == 2 else 0.5) * random(tokens, d_in, seed=seed + 1)
        around = x - x.mean(0)
        expected = (x - back).pow(2).sum() / around.pow(2).sum()
        found = attempt.tensor(x, back, shape=(), axes="a single number")
        each = (x - back).pow(2)
        mistakes = {
            "Variance is measured around the mean over tokens; yours around zero, which flatters.": each.sum()
            / x.pow(2).sum(),
            "That is the share that is explained. The share that is left is wanted.": 1 - expected,
            "Each dimension has a mean of its own: `x.mean(0)`. Yours is one mean for all numbers.": each.sum()
            / (x - x.mean()).pow(2).sum(),
            "The mean is over tokens; yours is over the dimensions of each token.": each.sum()
            / (x - x.mean(1, keepdim=True)).pow(2).sum(),
            "Add up over all dimensions before you divide; yours is the mean of one share for each dimension.": (
                each.sum(0) / around.pow(2).sum(0)
            ).mean(),
            "Add up over all tokens before you divide; yours is the mean of one share for each token.": (
                each.sum(1) / around.pow(2).sum(1)
            ).mean(),
            "The lengths are squared: this is the root of what is wanted.": expected.sqrt(),
            "Square first, then add up: yours takes sizes.": (x - back).abs().sum() / around.abs().sum(),
            "Divide by the variance of x, not of what came back.": each.sum()
            / (back - back.mean(0)).pow(2).sum(),
            "The error is not divided by anything.": each.sum(),
            "Each is one sum over everything. `torch.var` divides by one less than the number of tokens.": each.mean()
            / x.var(0).mean(),
            "Take the error itself; yours takes the mean off it first.": ((x - back) - (x - back).mean(0))
            .pow(2)
            .sum()
            / around.pow(2).sum(),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    x = random(8, 3, seed=5) + 4
    if abs(attempt.tensor(x, x.clone(), shape=(), axes="a single number")) > 1e-6:
        raise NotYet("A perfect copy leaves nothing: the share must be 0.")
    nothing = attempt.tensor(x, x.mean(0).expand_as(x).clone(), shape=(), axes="a single number")
    if abs(nothing - 1) > 1e-4:
        raise NotYet("Whoever gives back the mean each time explains nothing: the share left must be 1.")
    return "0 for a perfect copy, 1 for the mean, and right on three cases in between."


@checker("26.4")
def check_set_feature(attempt: Attempt) -> str:
    for tokens, d_in, d_sae, index, value, seed in (
        (9, 3, 6, 2, 5.0, 0),
        (12, 5, 4, 3, 0.0, 1),
        (11, 6, 9, 0, -1.5, 2),
    ):
        x, W_dec = random(tokens, d_in, seed=seed), random(d_sae, d_in, seed=seed + 1)
        features = random(tokens, d_sae, seed=seed + 2).relu()
        b_dec = random(d_in, seed=seed + 3)
        old = features[:, index, None]
        expected = x + (value - old) * W_dec[index]
        changed = features.clone()
        changed[:, index] = value
        found = attempt.tensor(
            x, features, W_dec, b_dec, index, value, shape=(tokens, d_in), axes="token, d_in"
        )
        mistakes = {
            "You hand back the reconstruction: what the dictionary does not explain is lost, in every token. Change x itself.": changed
            @ W_dec
            + b_dec,
            "You hand back a reconstruction, and without b_dec. Change x itself.": changed @ W_dec,
            "Nothing is changed. The feature should be at its new value.": x,
            "You add the new value on top of the old one. Take the old one off.": x + value * W_dec[index],
            "The sign is turned round: new minus old.": x + (old - value) * W_dec[index],
            "The old value comes off, the new one never goes on.": x - old * W_dec[index],
            "You scaled the direction to length 1. Its length is part of what a feature contributes.": x
            + (value - old) * torch.nn.functional.normalize(W_dec[index], dim=0),
            "Only tokens where the feature is active are changed. Set it everywhere.": torch.where(
                old > 0, expected, x
            ),
            "You added `b_dec`. It is in x already.": expected + b_dec,
            "Every feature is set. Only one may change.": x + (value - features) @ W_dec,
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "One feature has its new value, and everything else, the unexplained part too, is as it was."


@checker("26.5")
def check_shared(attempt: Attempt) -> str:
    for rows, others, d, threshold, seed in (
        (61, 37, 7, 0.65, 0),
        (29, 83, 9, 0.65, 1),
        (53, 53, 7, 0.7, 2),
        (97, 71, 9, 0.6, 3),
    ):
        A, B = (torch.nn.functional.normalize(random(n, d, seed=seed + n), dim=1) for n in (rows, others + 1))
        B = B[1:]
        cosines = A @ B.T
        A, B = A * torch.linspace(0.6, 1.4, rows)[:, None], B * torch.linspace(1.3, 0.7, others)[:, None]
        share = lambda values, least=threshold: (values > least).float().mean()
        expected = share(cosines.max(1).values)
        found = attempt.tensor(A, B, threshold, shape=(), axes="a single number")
        mistakes = {
            "Scale the directions to length 1 first: a long one is not a similar one.": share(
                (A @ B.T).max(1).values
            ),
            "Opposite directions are different features: a cosine of -1 is no match.": share(
                cosines.abs().max(1).values
            ),
            "For each direction of the *first* dictionary, its best partner in the second; yours is the other way round.": share(
                cosines.max(0).values
            ),
            "You count pairs. Count directions of the first dictionary that have a partner.": share(cosines),
            "Scale both dictionaries to length 1, not only the first.": share(
                (torch.nn.functional.normalize(A, dim=1) @ B.T).max(1).values
            ),
            "Scale both dictionaries to length 1, not only the second.": share(
                (A @ torch.nn.functional.normalize(B, dim=1).T).max(1).values
            ),
            "You average the cosines. Count those above the threshold.": cosines.max(1).values.mean(),
            "That is how many; the share is wanted.": (cosines.max(1).values > threshold).float().sum(),
            "That is the share without a partner.": 1 - expected,
        }
        n = min(rows, others)
        by_number = (cosines[:n, :n].diagonal() > threshold).float()
        same = "Feature 3 of one dictionary has nothing to do with feature 3 of the other: look for the best partner."
        is_like(found, {same: by_number.mean()})
        is_like(found, {same: by_number.sum() / rows})
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return (
        "Best partner by cosine, for each direction of the first dictionary, on four pairs of dictionaries."
    )
