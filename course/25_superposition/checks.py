"""Checks of notebook 25, superposition."""

import torch

from mechlab_course.checking import close, is_like, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("25.1")
def check_reconstruct(attempt: Attempt) -> str:
    for count, features, hidden, seed in ((4, 5, 2, 0), (6, 3, 3, 1), (3, 8, 4, 2)):
        x, W, b = (
            random(count, features, seed=seed).abs(),
            random(features, hidden, seed=seed + 1),
            random(features, seed=seed + 2),
        )
        expected = (x @ W @ W.T + b).relu()
        found = attempt.tensor(x, W, b, shape=(count, features), axes="example, feature")
        mistakes = {
            "The ReLU is missing: what comes back is never below zero.": x @ W @ W.T + b,
            "Add b before the ReLU, not after it.": (x @ W @ W.T).relu() + b,
            "There is a ReLU on the hidden numbers too. Only the output has one.": (
                (x @ W).relu() @ W.T + b
            ).relu(),
            "Where is b?": (x @ W @ W.T).relu(),
            "You took b off. Add it.": (x @ W @ W.T - b).relu(),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    if not close(
        attempt.tensor(torch.eye(3), torch.eye(3), torch.zeros(3), shape=(3, 3), axes="example, feature"),
        torch.eye(3),
    ):
        raise NotYet("With W the identity and b zero, what goes in must come out.")
    return "Three models, and the identity gives back what goes in."


@checker("25.2")
def check_sparse(attempt: Attempt) -> str:
    for density, seed in ((0.3, 0), (0.05, 1), (1.0, 2), (0.7, 3)):
        found = attempt.tensor(4000, 6, density, seeded(seed), shape=(4000, 6), axes="count, feature")
        if found.min() < 0 or found.max() > 1:
            raise NotYet("The numbers lie between 0 and 1.")
        present = found > 0
        share = present.float().mean().item()
        if density != 0.5 and abs(share - (1 - density)) < 0.02 and abs(share - density) > 0.02:
            raise NotYet(
                f"A density of {density} is how often a number is present; in yours it is absent that often."
            )
        if abs(share - density) > 0.02:
            raise NotYet(
                f"With density {density} about that share of the numbers is present; in yours it is {share:.3f}."
            )
        if density < 1:
            rows = present.float().mean(1)
            if ((rows == 0) | (rows == 1)).all():
                raise NotYet("You drop whole examples. Each number is present or absent by itself.")
            if abs(rows.var().item() - density * (1 - density) / 6) > 0.3 * density * (1 - density) / 6:
                raise NotYet("The features of one example are not drawn independently of each other.")
        values = found[present]
        if torch.unique(found[:, 0]).numel() < 0.95 * share * len(found):
            raise NotYet("Examples are repeated. Draw each by itself.")
        both = found[present[:, :2].all(1)][:, :2]
        if len(both) > 500 and abs(torch.corrcoef(both.T)[0, 1]) > 0.12:
            raise NotYet("The features of one example have the same size. Draw a size for each.")
        if values.max() < density + 0.01 and density < 0.9:
            raise NotYet(
                "You compare the sizes themselves with the density: the same draw decides how large and whether. Draw twice."
            )
        if abs(values.mean() - 0.5) > 0.04:
            raise NotYet(
                f"Present numbers are uniform between 0 and 1, with mean 0.5; yours have {values.mean():.2f}."
            )
        if abs(values.var() - 1 / 12) > 0.02:
            raise NotYet("Present numbers are uniform between 0 and 1; yours are spread differently.")
    drawn = [
        attempt.tensor(7, 3, 0.5, seeded(seed), shape=(7, 3), axes="count, feature") for seed in (7, 7, 8)
    ]
    if not torch.equal(drawn[0], drawn[1]) or torch.equal(drawn[0], drawn[2]):
        raise NotYet(
            "The same generator must give the same numbers, and another one others: draw with `generator=generator`, both times."
        )
    return "As dense as asked for, independent, and uniform where present, four times."


@checker("25.3")
def check_dimensionality(attempt: Attempt) -> str:
    angles = torch.arange(5) * 2 * torch.pi / 5
    pentagon = torch.stack([angles.cos(), angles.sin()], 1)
    cases = [
        random(9, 3, seed=0),
        0.3 + random(4, 4, seed=1),
        1.7 * pentagon,
        torch.tensor([[1.0], [-1.0]]),
        2 * torch.eye(3),
    ]
    for W in cases:
        length = W.norm(dim=1)
        overlap = ((W / length[:, None]) @ W.T).pow(2)
        expected = length**2 / overlap.sum(1)
        found = attempt.tensor(W, shape=(len(W),), axes="feature")
        unit = W / length[:, None]
        mistakes = {
            "Only the i in the sum has a hat. Scaling both sides, or only j, loses the squared length in front.": 1
            / (unit @ unit.T).pow(2).sum(1),
            "The sum runs over all j, feature i included; yours is without its own.": length**2
            / (overlap.sum(1) - overlap.diagonal()).clamp_min(1e-12),
            "The overlaps are not squared.": length**2 / ((W / length[:, None]) @ W.T).abs().sum(1),
            "The length in front is not squared.": length / overlap.sum(1),
            "You scaled the wrong one: the hat is on i, the rows.": length**2 / overlap.sum(0),
            "Either the hat on W_i is missing, or the squared length in front.": length**2
            / (W @ W.T).pow(2).sum(1),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
        if found.sum() > W.shape[1] + 1e-3:
            raise NotYet("Together the features cannot have more dimensions than there are.")
    return "2/5 in a pentagon, 1/2 in a pair, 1 at right angles, and right on random directions."


@checker("25.4")
def check_interference(attempt: Attempt) -> str:
    for features, hidden, seed in ((5, 2, 0), (4, 6, 1)):
        W = random(features, hidden, seed=seed)
        products = W @ W.T
        expected = products.pow(2).sum(1) - products.diagonal().pow(2)
        found = attempt.tensor(W, shape=(features,), axes="feature")
        unit = W / W.norm(dim=1, keepdim=True)
        cosines = (unit @ unit.T).pow(2)
        is_like(
            found,
            {
                "A feature does not interfere with itself: leave the diagonal out.": products.pow(2).sum(1),
                "The products are not squared, so that they cancel.": products.sum(1) - products.diagonal(),
                "You scaled the directions to length 1. They count with their lengths.": cosines.sum(1)
                - cosines.diagonal(),
                "You took the mean over the others. Add up.": expected / (features - 1),
                "You count only the features that come later. All others interfere.": products.pow(2)
                .triu(1)
                .sum(1),
                "You took sizes, not squares.": products.abs().sum(1) - products.diagonal().abs(),
            },
        )
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    if attempt.tensor(3 * torch.eye(4), shape=(4,), axes="feature").abs().max() > 1e-5:
        raise NotYet("Directions at right angles do not interfere.")
    return "0 at right angles, and right on two sets of directions."
