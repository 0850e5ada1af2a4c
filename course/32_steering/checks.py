"""Checks of notebook 32, steering."""

import torch
from torch import Tensor

from mechlab_course.checking import close, is_like, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _pooled(texts: list[Tensor], first: int = 1) -> Tensor:
    return torch.stack([text[first:].mean(0) for text in texts]).mean(0)


@checker("32.1")
def check_contrast(attempt: Attempt) -> str:
    for ours, theirs, d, seed in (
        ((4, 7, 3), (5, 2), 6, 0),
        ((2, 9), (6, 3, 8, 2), 3, 1),
        ((5,), (3, 10), 8, 2),
    ):
        make = lambda sizes, start, d=d: [random(n, d, seed=start + i) + 0.3 * i for i, n in enumerate(sizes)]
        positive, negative = make(ours, 10 * seed), make(theirs, 10 * seed + 50)
        for texts in (positive, negative):
            for text in texts:
                text[0] *= 20  # the attention sink
                text[-1] *= 50 if seed == 2 else 1  # the first is left out, not the longest
        kept = [text.clone() for text in positive + negative]
        expected = _pooled(positive) - _pooled(negative)
        found = attempt.tensor(positive, negative, shape=(d,), axes="d_model")
        if not all(torch.equal(a, b) for a, b in zip(kept, positive + negative, strict=True)):
            raise NotYet("Your function writes into the streams it was given, in place. Work on a copy.")
        joined = lambda texts, first=1: torch.cat([text[first:] for text in texts]).mean(0)
        shortest = min(map(len, positive + negative))
        both = lambda pool, positive=positive, negative=negative: pool(positive) - pool(negative)
        mistakes = {
            "The first token is in your means. It is an attention sink, many times as long as the rest: leave it out.": both(
                lambda texts: _pooled(texts, 0)
            ),
            "You pooled all tokens of all texts, so long texts count more. First the mean of each text, then over texts.": both(
                joined
            ),
            "You pooled all tokens, the first ones too. First the mean of each text without its first token, then over texts.": both(
                lambda texts, joined=joined: joined(texts, 0)
            ),
            "That is the last token of each text. Take the mean over all tokens but the first.": both(
                lambda texts: torch.stack([text[-1] for text in texts]).mean(0)
            ),
            "The last token is missing. `[1:]` leaves out the first only.": both(
                lambda texts: torch.stack([t[1:-1].mean(0) if len(t) > 2 else t[1] for t in texts]).mean(0)
            ),
            "That points the other way: negative minus positive.": -expected,
            "Keep the difference as long as it is. Its length is the natural size of one step.": expected
            / expected.norm(),
            "That is the mean of the positive texts alone. Everything that all texts share is still in it.": _pooled(
                positive
            ),
            "You added up over the tokens. Take the mean, or long texts count more.": both(
                lambda texts: torch.stack([t[1:].sum(0) for t in texts]).mean(0)
            ),
            "You added up over the texts. Take the mean: the two sets need not be equally large.": both(
                lambda texts: torch.stack([t[1:].mean(0) for t in texts]).sum(0)
            ),
            "You cut all texts to the shortest. Use every token of every text.": both(
                lambda texts, shortest=shortest: torch.stack([t[1:shortest].mean(0) for t in texts]).mean(0)
            ),
            "Only the first text of each set is in it. Average over all of them.": _pooled(positive[:1])
            - _pooled(negative[:1]),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "Each text counts once, its first token not at all, on three sets of unequal texts."


@checker("32.2")
def check_steer(attempt: Attempt) -> str:
    for batch, pos, d, strength, length, seed in (
        (2, 5, 4, 0.3, 8.0, 0), (3, 1, 6, 0.5, 20.0, 1), (1, 7, 3, -0.4, 5.0, 2), (4, 2, 5, 1.5, 3.0, 3), (1, 1, 4, -0.2, 9.0, 4),
    ):  # fmt: skip
        stream, direction = random(batch, pos, d, seed=seed), 2.5 * random(d, seed=seed + 9)
        stream[:, 0] *= 6
        unit = direction / direction.norm()
        new = pos == 1
        step = strength * length * unit
        put = lambda step, s=stream, new=new: s + step if new else torch.cat([s[:, :1], s[:, 1:] + step], 1)
        expected = put(step)
        found = attempt.tensor(
            stream, direction, strength, length, shape=(batch, pos, d), axes="batch, pos, d_model"
        )
        own = stream.norm(dim=-1, keepdim=True)
        last = torch.cat([stream[:, :-1], stream[:, -1:] + step], 1)
        mistakes = {
            "A stream of one position is a token that the model has just written: steer it. Nothing is changed now."
            if new
            else "Nothing is changed. Do you return the sum?": stream,
            "The first token is changed too. It is an attention sink: leave it as it is.": stream + step,
            "Only the last position is steered. Add the vector at all but the first.": last,
            "Scale the direction to length 1 first: 0.2 shall mean a fifth of the stream's length.": put(
                strength * length * direction
            ),
            "Where is `length`? A strength of 0.2 shall add a vector 0.2 × `length` long.": put(
                strength * unit
            ),
            "That is the direction as it is, times the strength. Scale it to length 1, then by `length`.": put(
                strength * direction
            ),
            "Where is `strength`? The vector is always as long as the stream.": put(length * unit),
            "The sign of `strength` is lost. A negative strength steers the other way."
            if strength < 0
            else "You took the vector off. Add it.": put(-step),
            "You scale by each token's own length. Use `length`, the same for all.": stream
            + strength * own * unit
            if new
            else torch.cat([stream[:, :1], stream[:, 1:] + strength * own[:, 1:] * unit], 1),
            "The stream is replaced. Add the vector to it.": (0 * stream + step)
            if new
            else torch.cat([stream[:, :1], 0 * stream[:, 1:] + step], 1),
            "Only the first token is steered. Leave that one out and steer the others.": torch.cat(
                [stream[:, :1] + step, stream[:, 1:]], 1
            ),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "A vector of the right length, at all positions but the first, and at each new token."


@checker("32.4")
def check_effects(attempt: Attempt) -> str:
    for n, strength, seed in ((9, 0.2, 0), (16, -0.4, 1), (8, 0.05, 2), (12, -0.1, 3)):
        before = 2 * random(n, seed=seed) + 0.5
        change = (0.7 if strength > 0 else -0.7) + random(n, seed=seed + 20)
        change[1], change[2] = 0.0, -strength  # one that does not move, one that moves the wrong way
        before[1:3] = torch.tensor([1.5, -2.0])
        after = before + change
        effect = after - before
        up, down = (effect > 0).float().mean().item(), (effect < 0).float().mean().item()
        share = down if strength > 0 else up
        result = attempt(after, before, strength)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise NotYet(
                "Return two things: the effect of each prompt, and the share that goes the wrong way."
            )
        found, said = result[0], result[1]
        if not isinstance(found, Tensor) or tuple(found.shape) != (n,):
            raise NotYet(
                "The first is one number a prompt, [prompt]. Do not average: the mean hides who moves which way."
            )
        if not torch.isfinite(found).all():
            raise NotYet("There are NaN or infinite values among the effects of the prompts.")
        if close(found.float(), -effect):
            raise NotYet("The effect is steered minus unsteered; yours has the sign turned round.")
        if close(found.float(), effect.abs()):
            raise NotYet("Keep the sign of the effect: below 0 the metric fell.")
        if not close(found.float(), effect):
            raise NotYet(only_wrong(found.float(), effect))
        said = _number(said, "the share")
        wrong = {
            "A negative strength shall lower the metric. With it, the wrong way is up.": down
            if strength < 0
            else share,
            "That is the share that goes the right way.": up if strength > 0 else down,
            "A prompt that does not move has not gone the wrong way: count those beyond 0 only.": share
            + 1 / n,
            "You count prompts on which the steered metric is below 0. Ask whether it moved, not where it ended.": (
                after < 0
            )
            .float()
            .mean()
            .item(),
            "That is a count. Return a share between 0 and 1.": share * n,
            "That is in per cent. Return a share between 0 and 1.": share * 100,
            "That is the mean over all prompts, 0 or 1. Count the prompts one by one.": float(
                (effect.mean() * strength < 0).item()
            ),
        }
        if abs(said - share) > 1e-5:
            for why, value in wrong.items():
                if abs(said - value) < 1e-5:
                    raise NotYet(why)
            raise NotYet(f"The share that goes the wrong way should be {share:.3f}, and yours is {said:.3f}.")
    return "Each prompt's effect, and those that go against the sign of the strength."


def _loss(logits: Tensor, text: Tensor, skip: int = 1) -> Tensor:
    rows = logits[:, skip:-1].log_softmax(-1).gather(-1, text[:, skip + 1 :, None])
    return -rows[..., 0]


@checker("32.3")
def check_perplexity(attempt: Attempt) -> str:
    for texts, pos, vocab, seed in ((2, 6, 9, 0), (5, 4, 7, 1), (3, 11, 5, 2)):
        text = torch.randint(vocab, (texts, pos), generator=seeded(seed))
        unsteered, steered = (
            2 * random(texts, pos, vocab, seed=seed),
            3 * random(texts, pos, vocab, seed=seed + 9),
        )
        a, b = _loss(steered, text), _loss(unsteered, text)
        expected = (a.mean() - b.mean()).exp()
        found = attempt.tensor(steered, unsteered, text, shape=(), axes="one number")
        here = lambda x, text=text: -x.log_softmax(-1).gather(-1, text[..., None])[..., 0]
        c, d = _loss(steered, text, 0), _loss(unsteered, text, 0)
        p, q = (x[:, 1:-1].softmax(-1).gather(-1, text[:, 2:, None]) for x in (steered, unsteered))
        raw = lambda x, text=text: -x[:, 1:-1].gather(-1, text[:, 2:, None]).mean()
        mistakes = {
            "You took exp before the mean: one bad token then counts for all. Mean of the losses first, then exp.": a.exp().mean()
            / b.exp().mean(),
            "That is the mean of the tokens' own ratios. Mean of the losses first, then exp, once for all tokens.": (
                a - b
            )
            .exp()
            .mean(),
            "That is the mean of the texts' own ratios. Mean of the losses over all tokens first, then exp.": (
                a.mean(1) - b.mean(1)
            )
            .exp()
            .mean(),
            "That divides the mean perplexities of the texts. Mean of the losses over all tokens first, then exp.": a.mean(
                1
            )
            .exp()
            .mean()
            / b.mean(1).exp().mean(),
            "The logits at a position are about the next token. Shift by one.": (
                here(steered)[:, 1:].mean() - here(unsteered)[:, 1:].mean()
            ).exp(),
            "The logits at a position are about the next token. Shift by one. ": (
                here(steered).mean() - here(unsteered).mean()
            ).exp(),
            "The logits at a position are about the next token, `text[:, 2:]`. Shift by one.": (
                here(steered)[:, 1:-1].mean() - here(unsteered)[:, 1:-1].mean()
            ).exp(),
            "The last token is not asked for. `[:, 1:-1]` leaves out the logits after it, and `text[:, 2:]` holds it.": (
                a[:, :-1].mean() - b[:, :-1].mean()
            ).exp(),
            "The prediction at position 0 is in it. Nothing is steered there: leave it out.": (
                c.mean() - d.mean()
            ).exp(),
            "That is unsteered / steered. 2 shall mean: twice the perplexity.": 1 / expected,
            "That is the difference of the losses, in nats. exp makes it a ratio of perplexities.": expected.log(),
            "That is the ratio of the losses. Perplexity is exp(loss).": a.mean() / b.mean(),
            "That is the perplexity of the steered run alone.": a.mean().exp(),
            "You added up the losses. Take their mean, or the ratio depends on how long the text is.": (
                a.sum() - b.sum()
            ).exp(),
            "That is a ratio of mean probabilities, not of perplexities.": q.mean() / p.mean(),
            "Logits are not log-probabilities yet: `log_softmax` over the vocabulary.": (
                raw(steered) - raw(unsteered)
            ).exp(),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected, 1e-3)})
        if not close(found, expected, 1e-3):
            raise NotYet(only_wrong(found, expected))
        back = attempt.tensor(unsteered, steered, text, shape=(), axes="")
        if not close(back, 1 / expected, 1e-3):
            raise NotYet(
                f"With the two runs exchanged the ratio must be {1 / expected:.3g}, one over what it was; yours is {back:.3g}."
            )
        same = attempt.tensor(unsteered, unsteered + 3.0, text, shape=(), axes="")
        if not close(same, torch.tensor(1.0), 1e-3):
            raise NotYet(
                f"A constant on all logits changes no probability: the ratio must be 1, and yours is {same:.3g}."
            )
    return "Mean of the losses, then exp; 1 when nothing changes; the unsteered position is left out."


@checker("32.5")
def check_threshold(attempt: Attempt) -> str:
    for n, rate, seed in (
        (24, 0.05, 0),
        (40, 0.1, 1),
        (16, 0.0, 2),
        (50, 0.25, 3),
        (12, 0.04, 4),
        (30, 0.13, 5),
    ):
        quiet = 3 * random(n, seed=seed) - 2
        _threshold_on(attempt, quiet, rate)
    _threshold_on(
        attempt, torch.tensor([1.0, 4.0, 4.0, 4.0, -2.0, 0.0, 2.5, 3.0, 4.0, -1.0]), 0.2
    )  # four equal ones at the top
    return "Never more false alarms than allowed on validation texts, and no more caution than that needs."


def _threshold_on(attempt: Attempt, quiet: Tensor, rate: float) -> None:
    found = _number(attempt(quiet, rate), "the threshold")
    limit = int(rate * len(quiet) + 1e-9)
    ordered = quiet.sort(descending=True).values
    best = max(n for n in ((quiet > value).sum().item() for value in quiet) if n <= limit)
    raised = (quiet >= torch.tensor(found)).sum().item()
    if abs(found - rate) < 1e-6 or abs(found - (1 - rate)) < 1e-6:
        raise NotYet("That is the rate itself. A threshold is a projection, in the units of `quiet`.")
    if raised > limit:
        text = f"{raised} of {len(quiet)} quiet texts raise a flag, and {rate:.0%} allows {limit}."
        if abs(found - ordered[limit].item()) < 1e-6:
            text += " A projection equal to the threshold raises a flag too: the threshold must lie just above it, by a step that float32 "
            text += "does not round off: `torch.nextafter`, or 1e-5 more."
        elif raised >= len(quiet) / 2:
            text += " Loud is at the upper end: sort, and count from there."
        raise NotYet(text)
    if raised < best:
        raise NotYet(
            f"{raised} of {len(quiet)} quiet texts raise a flag; {best} may ({rate:.0%}). A lower threshold catches more: take the lowest "
            "that is allowed."
        )
    if best == 0 and found > ordered[0] + 0.2 * (ordered[0] - ordered[-1]):
        raise NotYet(
            "With no false alarm allowed the threshold lies just above the loudest quiet text. Yours lies far above: it would catch nothing."
        )


def _number(value, what: str) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"Return {what} as one number; yours is a {type(value).__name__}.") from None
    if value != value or abs(value) == float("inf"):
        raise NotYet(f"{what.capitalize()} is NaN or infinite.")
    return value
