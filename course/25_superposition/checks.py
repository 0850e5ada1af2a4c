"""Checks of notebook 25, superposition."""

import torch

from mechlab.discovery.superposition import train_toy_models
from mechlab_course.checking import close, declare, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _toy(count: int, features: int, hidden: int, seed: int):
    W, b = random(features, hidden, seed=seed + 1), random(features, seed=seed + 2)
    return random(count, features, seed=seed).abs(), W, b


@declare("25.1", axes="example, feature", says="Three models, and the identity gives back what goes in.")
class Reconstruct:
    cases = (_toy(4, 5, 2, 0), _toy(6, 3, 3, 1), _toy(3, 8, 4, 2))

    def right(x, W, b):
        return (x @ W @ W.T + b).relu()

    def no_relu(x, W, b):
        """The ReLU is missing: what comes back is never below zero."""
        return x @ W @ W.T + b

    def gelu(x, W, b):
        """You used gelu. A ReLU cuts at 0."""
        return torch.nn.functional.gelu(x @ W @ W.T + b)

    def sigmoid(x, W, b):
        """You used a sigmoid. A ReLU cuts at 0, and leaves what is above."""
        return (x @ W @ W.T + b).sigmoid()

    def b_packed_too(x, W, b):
        """You added b before packing. It is added to what comes back, before the ReLU."""
        return ((x + b) @ W @ W.T).relu()

    def unit_rows(x, W, b):
        """You scaled the rows of W to length 1. Use W as it is."""
        return Reconstruct.right(x, W / W.norm(dim=1, keepdim=True), b)

    def b_after_the_relu(x, W, b):
        """Add b before the ReLU, not after it."""
        return (x @ W @ W.T).relu() + b

    def relu_on_hidden(x, W, b):
        """There is a ReLU on the hidden numbers too. Only the output has one."""
        return ((x @ W).relu() @ W.T + b).relu()

    def no_b(x, W, b):
        """Where is b?"""
        return (x @ W @ W.T).relu()

    def b_taken_off(x, W, b):
        """You took b off. Add it."""
        return (x @ W @ W.T - b).relu()

    def further(attempt):
        one = torch.eye(3)
        found = attempt.tensor(one, one, torch.zeros(3), shape=(3, 3), axes="example, feature")
        refuse(not close(found, one), "With W the identity and b zero, what goes in must come out.")


@checker("25.2")
def check_sparse(attempt: Attempt) -> str:
    for density, seed in ((0.3, 0), (0.05, 1), (1.0, 2), (0.7, 3)):
        found = attempt.tensor(4000, 6, density, seeded(seed), shape=(4000, 6), axes="count, feature")
        refuse(found.min() < 0 or found.max() > 1, "The numbers lie between 0 and 1.")
        present = found > 0
        columns = density < 1 and (present.all(0) | ~present.any(0)).all()
        refuse(columns, "You drop whole features. Each number is present or absent by itself.")
        counts = present.sum(1)
        same = density < 1 and counts[0] > 0 and (counts == counts[0]).all()
        why = "Each number is present or absent by itself, so how many are varies."
        refuse(same, f"Every example of yours has exactly {counts[0]} present. {why}")
        _are_as_dense(found, density)
        if density < 1:
            _are_independent(found, density)
        _are_uniform(found, density)
    first, same, other = (
        attempt.tensor(7, 3, 0.5, seeded(seed), shape=(7, 3), axes="count, feature") for seed in (7, 7, 8)
    )
    if not torch.equal(first, same) or torch.equal(first, other):
        raise NotYet(
            "The same generator must give the same numbers, and another one others: draw with "
            "`generator=generator`, both times."
        )
    return "As dense as asked for, independent, and uniform where present, four times."


def _are_as_dense(found, density: float) -> None:
    share = (found > 0).float().mean().item()
    off = abs(share - density) > 0.02
    refuse(
        off and abs(share - (1 - density)) < 0.02,
        f"A density of {density} is how often a number is present; in yours it is absent that often.",
    )
    asked = f"With density {density} about that share of the numbers is present"
    refuse(off, f"{asked}; in yours it is {share:.3f}.")


def _are_independent(found, density: float) -> None:
    rows, spread = (found > 0).float().mean(1), density * (1 - density) / 6
    whole = ((rows == 0) | (rows == 1)).all()
    refuse(whole, "You drop whole examples. Each number is present or absent by itself.")
    tied = abs(rows.var().item() - spread) > 0.3 * spread
    refuse(tied, "The features of one example are not drawn independently of each other.")


def _are_uniform(found, density: float) -> None:
    present = found > 0
    values, both = found[present], found[present[:, :2].all(1)][:, :2]
    flat = "Every number that is present has the same size. It is uniform between 0 and 1."
    refuse(values.std() < 1e-6, flat)
    few = torch.unique(found[:, 0]).numel() < 0.95 * present.float().mean() * len(found)
    refuse(few, "Examples are repeated. Draw each by itself.")
    alike = len(both) > 500 and abs(torch.corrcoef(both.T)[0, 1]) > 0.12
    refuse(alike, "The features of one example have the same size. Draw a size for each.")
    refuse(
        density < 0.9 and values.max() < density + 0.01,
        "You compare the sizes themselves with the density: the same draw decides how large and whether. "
        "Draw twice.",
    )
    uniform = "Present numbers are uniform between 0 and 1"
    refuse(abs(values.mean() - 0.5) > 0.04, f"{uniform}, with mean 0.5; yours have {values.mean():.2f}.")
    refuse(abs(values.var() - 1 / 12) > 0.02, f"{uniform}; yours are spread differently.")


def _pentagon():
    angles = torch.arange(5) * 2 * torch.pi / 5
    return torch.stack([angles.cos(), angles.sin()], 1)


def _overlaps(W):
    """The squared overlaps: each direction at length 1 (rows) with all as they are (columns)."""
    return ((W / W.norm(dim=1, keepdim=True)) @ W.T).pow(2)


@declare(
    "25.3",
    axes="feature",
    says="2/5 in a pentagon, 1/2 in a pair, 1 at right angles, and right on random directions.",
)
class Dimensionality:
    cases = (
        (random(9, 3, seed=0),),
        (0.3 + random(4, 4, seed=1),),
        (1.7 * _pentagon(),),
        (torch.tensor([[1.0], [-1.0]]),),
        (2 * torch.eye(3),),
    )

    def right(W):
        return W.norm(dim=1) ** 2 / _overlaps(W).sum(1)

    def both_scaled(W):
        """Only the i in the sum has a hat. Scaling both sides, or only j, loses the squared length in
        front."""
        return 1 / _overlaps(W / W.norm(dim=1, keepdim=True)).sum(1)

    def without_itself(W):
        """The sum runs over all j, feature i included; yours is without its own."""
        overlaps = _overlaps(W)
        return W.norm(dim=1) ** 2 / (overlaps.sum(1) - overlaps.diagonal()).clamp_min(1e-12)

    def overlaps_not_squared(W):
        """The overlaps are not squared."""
        return W.norm(dim=1) ** 2 / _overlaps(W).sqrt().sum(1)

    def squared_sum(W):
        """You add up the overlaps and square the sum. Square each, then add up."""
        return W.norm(dim=1) ** 2 / ((W / W.norm(dim=1, keepdim=True)) @ W.T).sum(1).pow(2)

    def length_not_squared(W):
        """The length in front is not squared."""
        return W.norm(dim=1) / _overlaps(W).sum(1)

    def none_scaled(W):
        """Either the hat on W_i is missing, or the squared length in front."""
        return W.norm(dim=1) ** 2 / (W @ W.T).pow(2).sum(1)


@checker("25.5")
def check_draw(attempt: Attempt) -> str:
    drawn = lambda count, seed: attempt.tensor(count, seeded(seed), shape=(count, 4), axes="count, feature")
    pool = drawn(20_000, 0)
    _are_alike(pool)
    first, same, other = drawn(300, 7), drawn(300, 7), drawn(300, 8)
    refuse(
        not torch.equal(first, same) or torch.equal(first, other),
        "The same generator must give the same examples, and another one others: draw with "
        "`generator=generator` each time.",
    )
    sample = lambda count, generator: pool[torch.randint(len(pool), (count,), generator=generator)]
    toy = train_toy_models(4, 2, density=(0.2,) * 32, sample=sample, steps=600, seed=2)
    best = toy.loss.view(8, 4).argmin(1) + 4 * torch.arange(8)  # of four starts that with the lowest loss
    W = toy.W[best]
    cosines = torch.cosine_similarity(W[:, 0], W[:, 1], dim=-1)
    opposite = int(((cosines < -0.9) & (W[:, :2].norm(dim=-1) > 0.5).all(1)).sum())
    together = int((cosines > 0.9).sum())
    _share_a_line(opposite, together, pool)
    return f"0 and 1 are opposite in {opposite} of 8 groups, and all four features are alike otherwise."


def _are_alike(x) -> None:
    """Four features within 0 and 1, equally frequent and equally large."""
    refuse(x.min() < 0 or x.max() > 1, "The numbers lie between 0 and 1.")
    share = (x > 0).float().mean(0)
    told = ", ".join(f"{each:.0%}" for each in share.tolist())
    refuse(
        share.min() < 0.05 or share.max() > 0.5,
        f"Each feature must be present (above 0) in 5 to 50 % of the examples; yours are in {told}.",
    )
    refuse(
        share.max() - share.min() > 0.03,
        f"All four must be equally frequent, so that only who meets whom can decide; yours are in {told}.",
    )
    for power, what in ((1, "mean"), (2, "mean square")):
        size = x.pow(power).sum(0) / (x > 0).sum(0)
        refuse(
            size.max() - size.min() > 0.05,
            f"All four must be equally large where they are present; the {what} of yours goes from "
            f"{size.min():.2f} to {size.max():.2f}.",
        )


def _share_a_line(opposite: int, together: int, pool) -> None:
    present = (pool > 0).float()
    met = present.T @ present / len(pool)  # how often each pair is present together
    own, others = (met[0, 1] + met[2, 3]) / 2, met[:2, 2:].mean()
    told = f"0 and 1 are opposite in {opposite} of 8 groups"
    refuse(
        opposite < 7 and together >= 3,
        f"In {together} of 8 groups 0 and 1 point the *same* way: in your examples they come together, and "
        "one direction says both. They should be opposite.",
    )
    refuse(
        opposite < 7 and own >= 0.8 * others,
        f"{told}. In your examples 0 and 1 meet as often as other pairs do, or more often, so nothing speaks "
        "for this pair. What is lost when two opposite features are present at once?",
    )
    refuse(
        opposite < 7,
        f"{told}; with independent features it is about a third. Which pair must seldom meet, compared with "
        "the others, and does it in your examples?",
    )
