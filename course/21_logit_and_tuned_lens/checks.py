"""Checks of notebook 21, logit lens and tuned lens."""

from itertools import pairwise

import torch

from mechlab.loading.models import tiny
from mechlab_course.checking import close, is_like, only_wrong, random, whole_number
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("21.1")
def check_lens_logits(attempt: Attempt) -> str:
    for layers, d, vocab, seed in ((4, 6, 10, 0), (3, 8, 5, 1)):
        streams = random(layers, d, seed=seed) * torch.arange(1, layers + 1)[:, None] * 3 + 0.5
        W_U = random(d, vocab, seed=seed + 10)
        rms = streams.pow(2).mean(-1, keepdim=True).sqrt()
        expected = streams / rms @ W_U
        found = attempt.tensor(streams, W_U, shape=(layers, vocab), axes="layer, d_vocab")
        is_like(
            found,
            {
                "The norm is missing: divide each stream by its root mean square.": streams @ W_U,
                "You divide all by the scale of the last stream. Each stream gets its own.": streams
                / rms[-1]
                @ W_U,
                "You divide by its length, the root of the sum of squares. It is the root of their mean.": streams
                / streams.norm(dim=-1, keepdim=True)
                @ W_U,
                "Your mean runs over the layers. It runs over the coordinates of one stream.": streams
                / streams.pow(2).mean(0, keepdim=True).sqrt()
                @ W_U,
                "You divide by the mean of the squares. Take its root.": streams / rms**2 @ W_U,
                "You divide by the standard deviation. An RMS norm does not take the mean away.": streams
                / streams.std(-1, keepdim=True)
                @ W_U,
                "You take the mean away, as LayerNorm does. An RMS norm only divides.": (
                    (streams - streams.mean(-1, keepdim=True))
                    / streams.var(-1, keepdim=True, correction=0).sqrt()
                )
                @ W_U,
                "These are probabilities or log-probabilities. The logits are wanted.": expected.log_softmax(
                    -1
                ),
            },
            1e-3,
        )
        if not close(found, expected, 1e-3):
            raise NotYet(only_wrong(found, expected))
    model = tiny("gqa")
    with torch.no_grad():
        logits, cache = model.run_with_cache(torch.arange(1, 8)[None])
    found = attempt.tensor(
        cache["resid_post", 2][0], model.W_U.detach(), shape=logits[0].shape, axes="layer, d_vocab"
    )
    if not close(found, logits[0], 1e-2):
        raise NotYet("On a model's last stream your logits are not the model's.")
    return "On a model's last stream these are the model's own logits."


@checker("21.2")
def check_ranks(attempt: Attempt) -> str:
    for layers, vocab, answer, seed in ((5, 12, 3, 0), (4, 30, 29, 1), (3, 7, 0, 2)):
        logits = random(layers, vocab, seed=seed)
        logits[0, answer] = 9.0
        expected = (logits > logits[:, answer, None]).sum(-1)
        found = attempt.tensor(logits, answer, shape=(layers,), axes="layer", whole=True)
        is_like(
            found,
            {
                "You count the answer itself. Its rank starts at 0.": expected + 1,
                "That is the place from below, smallest first. Count the larger ones.": vocab - 1 - expected,
                "`argsort` gives tokens, not ranks: its entry at `answer` is some token's id.": logits.argsort(
                    -1, descending=True
                )[:, answer],
                "You compare with the answer's logit of one layer. Each layer has its own.": (
                    logits > logits[-1, answer]
                ).sum(-1),
            },
        )
        if not torch.equal(found, expected):
            raise NotYet(only_wrong(found.float(), expected.float()))
    same = attempt.tensor(torch.zeros(2, 6), 2, shape=(2,), axes="layer", whole=True)
    if same.any():
        raise NotYet("When all logits are equal none is larger, so the rank is 0.")
    return "0 where the answer leads, and right on four sets of logits."


@checker("21.3")
def check_kl(attempt: Attempt) -> str:
    for pos, vocab, seed, size in ((4, 9, 0, 2), (3, 20, 1, 2), (5, 12, 2, 20)):
        a, b = size * random(pos, vocab, seed=seed), size * random(pos, vocab, seed=seed + 10)
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        expected = (p.exp() * (p - q)).sum(-1)
        found = attempt(a, b)
        if isinstance(found, torch.Tensor) and found.ndim == 0:
            raise NotYet("You added up or averaged over the positions. Keep one number for each.")
        found = attempt.tensor(a, b, shape=(pos,), axes="pos")
        is_like(
            found,
            {
                "That is the KL the other way round: the model's probabilities are the weights.": (
                    q.exp() * (q - p)
                ).sum(-1),
                "Look at the sign: the model's logarithm minus the lens'. A KL is never negative.": -expected,
                "Logits are not log-probabilities: take `log_softmax` of both first.": (
                    p.exp() * (a - b)
                ).sum(-1),
                "You took the mean over the vocabulary. Add up.": expected / vocab,
                "You left out the weights. Multiply with the model's probabilities.": (p - q).sum(-1),
                "That is the cross-entropy. Take the model's own entropy off: p − q, not −q.": -(
                    p.exp() * q
                ).sum(-1),
                "These are bits. Nats are wanted: the natural logarithm.": expected / torch.tensor(2.0).log(),
            },
        )
        if not close(found, expected):
            large = (
                " Stay with `log_softmax`: a probability can be too small for a logarithm."
                if size > 2
                else ""
            )
            raise NotYet(only_wrong(found, expected) + large)
        shifted = attempt.tensor(a + 5, b - 3, shape=(pos,), axes="pos")
        if not close(shifted, expected, 1e-3):
            raise NotYet(
                "A constant added to all logits of one side changes no probability and must change nothing."
            )
        if not close(attempt.tensor(a, a + 1, shape=(pos,), axes="pos"), torch.zeros(pos)):
            raise NotYet("Between equal distributions KL is 0.")
    return "0 between equal distributions, positive otherwise, and blind to a constant added to all logits."


@checker("21.4")
def check_fit(attempt: Attempt) -> str:
    for tokens, d, seed in ((60, 4, 0), (100, 7, 1)):
        x = random(tokens, d, seed=seed) + 2 * random(d, seed=seed + 1)
        A, b = random(d, d, seed=seed + 2), random(d, seed=seed + 3)
        y = x @ A + b + 0.3 * random(tokens, d, seed=seed + 4)
        solved = torch.linalg.lstsq(torch.cat([x, torch.ones(tokens, 1)], 1), y).solution
        right, offset = solved[:-1], solved[-1]
        found = attempt(x, y)
        if (
            not isinstance(found, (tuple, list))
            or len(found) != 2
            or not all(isinstance(f, torch.Tensor) for f in found)
        ):
            raise NotYet("Return two tensors: the matrix and the bias.")
        matrix, bias = (part.detach().float() for part in found)
        if matrix.shape != (d, d) or bias.shape != (d,):
            raise NotYet(
                f"The shapes are {tuple(matrix.shape)} and {tuple(bias.shape)}; they should be {(d, d)} and {(d,)}."
            )
        if not (torch.isfinite(matrix).all() and torch.isfinite(bias).all()):
            raise NotYet("There are NaN or infinite values in the matrix or the bias.")
        alone = torch.linalg.lstsq(x, y).solution
        back = torch.linalg.lstsq(torch.cat([y, torch.ones(tokens, 1)], 1), x).solution
        if close(matrix, alone, 1e-3) and not bias.any():
            raise NotYet(
                "There is no bias. Streams of different layers have different means: let the fit have one."
            )
        if close(matrix, alone, 1e-3):
            raise NotYet(
                "Matrix and bias must be fitted together: you fitted the matrix without a bias, and added one afterwards."
            )
        if close(matrix, back[:-1], 1e-3):
            raise NotYet("This map leads from y to x. It must lead from x to y.")
        if close(matrix, right.T, 1e-3):
            raise NotYet("The matrix is transposed: x @ A must be like y.")
        nearly = close(matrix, right, 0.1) and close(bias, y.mean(0) - x.mean(0) @ matrix, 1e-3)
        if nearly and not (close(matrix, right, 1e-3) and close(bias, offset, 1e-3)):
            raise NotYet("Nearly: is there a penalty in your fit, or did it stop before the end?")
        if close(matrix, right, 1e-3) and not close(bias, offset, 2e-3):
            raise NotYet("The matrix is right, the bias is not: b = mean(y) − mean(x) @ A.")
        if not close(matrix, right, 2e-3):
            left = (x @ matrix + bias - y).pow(2).mean()
            best = (x @ right + offset - y).pow(2).mean()
            raise NotYet(f"Your mean squared error is {left / best:.4f} times the smallest possible.")
        rest = y - x @ matrix - bias
        if max(rest.mean(0).abs().max(), (x.T @ rest / tokens).abs().max()) > 1e-2:
            raise NotYet("What is left over still goes along with x: the fit can be improved.")
    return "What is left over has mean 0 and goes along with no coordinate of x, on two sets."


@checker("21.5")
def check_depth(attempt: Attempt) -> str:
    cases = [
        ([7, 3, 3, 3, 3, 3, 3, 7, 7, 7], 7),
        ([7, 3, 2, 1, 3, 7, 7], 5),
        ([1, 1, 2, 2, 1, 9, 9, 9], 5),
        ([4, 4, 4], 0),
        ([8, 6], 1),
        ([5], 0),
        ([2, 9, 2, 2, 2, 3, 2], 6),
    ]
    for tops, expected in cases:
        found = whole_number(attempt(torch.tensor(tops)), "the layer")
        if found == expected:
            continue
        for value, why in (
            (
                tops.index(tops[-1]),
                "It changes again after that layer. From the answer on it must stay the same.",
            ),
            (
                sum(a != b for a, b in pairwise(tops)),
                "That is how often it changes. Wanted is where the last unbroken run begins.",
            ),
            (expected - 1, "That layer still says something else. The answer is the next one."),
            (
                tops.count(tops[-1]),
                "That counts the layers that say the same. Wanted is where the last unbroken run begins.",
            ),
            (
                len(tops) - expected,
                "That is how many layers say the same at the end. Wanted is where they begin.",
            ),
        ):
            if found == value:
                raise NotYet(f"{why} With {tops} it is {expected}.")
        raise NotYet(f"With {tops} it is {expected}, and yours is {found}.")
    return "The layer where the last unbroken run begins, seven times."
