"""Checks of notebook 33, matrix orthogonalization."""

import random as dice

import torch

from mechlab_course.checking import close, is_like, only_wrong, random, whole_number
from mechlab_course.exercises import Attempt, NotYet, checker

PHRASES = ("sorry, but", "I can't", "I cannot", "I won't", "I'm unable", "I'm not able")
HARMLESS = {
    "I'm so glad you're here! Let us start.": "“I'm” alone is no refusal: this model often begins with “I'm so glad”.",
    "I'm sorry for your loss. Here is a poem.": "“I'm sorry” alone is no refusal: “I'm sorry for your loss” is sympathy.",
    "I'm so sorry to hear about the flood.": "“Sorry” alone is no refusal: the model says it out of sympathy too.",
    "I can help you with that. First, take a pen.": "“I can” is the opposite of a refusal.",
    "I can't wait to see the garden!": "“I can't wait” is no refusal.",
    "I can’t wait to hear more. Here are three ideas.": "“I can’t wait” is no refusal, with the curly apostrophe too.",
    "Naomi can't swim, so she takes the bus.": "The “i” of “Naomi” is not the word “I”: look for whole words.",
    "You can't go wrong with a green scarf.": "“You can't go wrong” is no refusal: nobody says that “I” cannot.",
    "I know that you won't regret it.": "“You won't regret it” is no refusal: nobody says that “I” will not.",
    "It sounds lovely, and I can't wait!": "“I can't wait” is no refusal, whatever follows it.",
    "So sorry, Butterscotch has run out.": "“sorry, Butterscotch” does not hold “but” as a whole word.",
    "A cake needs flour and eggs.": "There is no refusing phrase in this answer at all.",
}


@checker("33.1")
def check_refuses(attempt: Attempt) -> str:
    draw = dice.Random(0)
    _truth(attempt("I'm sorry, but I can't do that."))  # is it True or False at all?
    for answer, why in HARMLESS.items():
        if _truth(attempt(answer)):
            raise NotYet(f"You count {answer!r} as a refusal. {why}")
        if _truth(attempt(answer.upper())):
            raise NotYet(f"You count {answer.upper()!r} as a refusal. Capitals do not matter. {why}")
    for phrase in PHRASES:
        start = "I'm " if phrase.startswith("sorry") else ""
        plain = f"{start}{phrase} do that."
        forms = {
            f"The phrase “{phrase}” is a refusal.": plain,
            "The refusal may come later in the answer: look everywhere, not only at the beginning.": f"{draw.choice(['Sure!', 'Hello there.', 'Well,'])} {plain}",
            "Capitals do not matter: compare in lower case.": plain.upper(),
            "Lower case counts too, even for “i”.": plain.lower(),
            "Apostrophes come in two forms, ' and ’. Make them one before you compare.": plain.replace(
                "'", "’"
            ),
            "A quotation mark or a space before the phrase does not matter.": f' "{plain}"',
            "Punctuation can follow at once: look for whole words, not for spaces.": f"No: {start}{phrase}.",
            "A second line is part of the answer too.": f"A fine question!\n{plain}",
        }
        for why, answer in forms.items():
            if not _truth(attempt(answer)):
                raise NotYet(f"{answer!r} is a refusal, and you say no. {why}")
    for answer in ("I can't wait to help, but I can't do that.", "I can't do that. I can't wait for lunch."):
        if not _truth(attempt(answer)):
            raise NotYet(
                f"{answer!r} holds “I can't wait” and also a real refusal: leave out the one, not the whole answer."
            )
    return "Phrases in any place, case and apostrophe; pleasantries and sympathy are let through."


@checker("33.2")
def check_directions(attempt: Attempt) -> str:
    for seed, layers, d in ((0, 3, 5), (1, 4, 7), (2, 2, 6)):
        sets = [_texts(seed + 10 * n, layers, d, count) for n, count in enumerate((4 + seed, 3))]
        last = [torch.stack([text[:, -1] for text in texts]) for texts in sets]
        raw = last[0].mean(0) - last[1].mean(0)
        unit = lambda x: x / x.norm(dim=-1, keepdim=True)
        expected = unit(raw)
        found = attempt.tensor(*sets, shape=(layers, d), axes="layer, d_model")
        at = lambda pick, sets=sets: [
            torch.stack([pick(text) for text in texts]).mean(0) for texts in sets
        ]  # two means
        mistakes = {
            "It points the other way: from improper to harmless. Take the improper mean minus the harmless one.": -expected,
            "Each layer's direction must have length 1: divide by its own norm.": raw,
            "You divided by one norm for all layers. Each layer has its own.": raw / raw.norm(),
            "You averaged over the positions. Only the last token of each request is asked for.": unit(
                torch.sub(*at(lambda t: t.mean(1)))
            ),
            "That is the first token. It is the same in every prompt; take the last one.": unit(
                torch.sub(*at(lambda t: t[:, 0]))
            ),
            "That is the last token but one: `text[:, -1]` is the last.": unit(
                torch.sub(*at(lambda t: t[:, -2]))
            ),
            "You scaled every text to length 1 before averaging. Average first, scale the difference.": unit(
                unit(last[0]).mean(0) - unit(last[1]).mean(0)
            ),
            "You scaled the two means to length 1 before the difference. Scale the difference.": unit(
                unit(last[0].mean(0)) - unit(last[1].mean(0))
            ),
            "You added up over the texts. The two sets differ in size, so take means.": unit(
                last[0].sum(0) - last[1].sum(0)
            ),
            "That is the mean of the improper requests alone. Subtract the harmless mean.": unit(
                last[0].mean(0)
            ),
            "You used one pair of requests only. Average over all of each kind.": unit(
                last[0][0] - last[1][0]
            ),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "One direction of length 1 a layer, from the last tokens, towards the improper requests."


@checker("33.5")
def check_affine(attempt: Attempt) -> str:
    for seed, batch, pos, d, many in ((0, 3, 4, 6, 5), (1, 2, 1, 5, 7), (2, 4, 3, 8, 3)):
        stream, harmless = random(batch, pos, d, seed=seed), random(many, d, seed=seed + 5) + 0.4
        direction = 2.5 * random(d, seed=seed + 9)
        unit = direction / direction.norm()
        level = (harmless @ unit).mean()
        moved = stream + (level - stream @ unit)[..., None] * unit
        only = lambda x, stream=stream: torch.cat([stream[:, :-1], x[:, -1:]], dim=1)
        expected = only(moved)
        found = attempt.tensor(
            stream, harmless, direction, shape=tuple(stream.shape), axes="batch, pos, d_model"
        )
        along = (stream @ unit)[..., None] * unit
        above = stream @ unit > level
        mistakes = {
            "You only lower the component. Where it is below the harmless mean, raise it.": torch.where(
                above[..., None], expected, stream
            ),
            "You only raise the component. Where it is above the harmless mean, lower it.": torch.where(
                above[..., None], stream, expected
            ),
            "Scale the direction to length 1 for the harmless mean too.": only(
                stream - along + (harmless @ direction).mean() * unit
            ),
            "Nothing is changed at the last token. Do you return the changed stream?": stream,
            "Every position is changed. Only the last token of each prompt should be.": moved,
            "The first position is changed. The last one is asked for.": torch.cat(
                [moved[:, :1], stream[:, 1:]], dim=1
            ),
            "The component is 0 now. That is plain ablation: put the harmless mean there.": only(
                stream - along
            ),
            "You wrote the whole harmless mean over the stream. Only the component along the direction changes.": only(
                harmless.mean(0).expand_as(stream)
            ),
            "You added the harmless level without taking off what was there.": only(stream + level * unit),
            "Scale the direction to length 1 first.": only(
                stream + ((harmless @ direction).mean() - stream @ direction)[..., None] * direction
            ),
            "You took off the mean instead of putting it there: a sign is wrong.": only(
                stream - along - level * unit
            ),
            "You put the level of one harmless request there. Take the mean over all of them.": only(
                stream - along + (harmless[0] @ unit) * unit
            ),
            "That is the sum over the harmless requests. Take the mean.": only(
                stream - along + (harmless @ unit).sum() * unit
            ),
            "That is the length of the harmless mean. Take its component along the direction.": only(
                stream - along + harmless.mean(0).norm() * unit
            ),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
        other = attempt.tensor(
            stream, harmless, -0.3 * direction, shape=tuple(stream.shape), axes="batch, pos, d_model"
        )
        if not close(other, expected, 1e-3):
            raise NotYet("Turned round or shortened, the direction is still the same line: same result.")
    return "The last token has the harmless mean along the direction; all else is as it was."


@checker("33.4")
def check_orthogonal(attempt: Attempt) -> str:
    for seed, shape in ((0, (7, 5)), (1, (3, 4, 6)), (2, (6,)), (3, (5, 5)), (4, (2, 3, 3))):
        W, direction = random(*shape, seed=seed), 3 * random(shape[-1], seed=seed + 9)
        unit = direction / direction.norm()
        without = lambda v, W=W: W - (W @ v)[..., None] * v
        expected = without(unit)
        found = attempt.tensor(
            W, direction, shape=shape, axes=", ".join(["..."] * (len(shape) > 1) + ["d_model"])
        )
        mistakes = {
            "Nothing is changed: the matrix still writes along the direction.": W,
            "Scale the direction to length 1 first: otherwise too much is taken out.": without(direction),
            "Divide by the squared length only once: `direction / direction.norm()` is used twice in the formula.": W
            - (W @ direction)[..., None] * direction / direction.norm(),
            "That is only the part along the direction. Subtract it from the matrix.": W - expected,
            "It goes the wrong way: the part along the direction has doubled.": 2 * W - expected,
            "The matrix is reflected: taken off twice.": 2 * expected - W,
        }
        if len(shape) >= 2 and shape[-1] == shape[-2]:
            mistakes[
                "That is the side that reads. `W` writes with its last axis (x @ W), so project W @ unit away."
            ] = W - unit[:, None] * (unit @ W)[..., None, :]
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            if (found @ unit).abs().max() > 1e-3:
                raise NotYet(
                    f"The matrix still writes {(found @ unit).abs().max():.3g} along the direction. "
                    + only_wrong(found, expected)
                )
            raise NotYet(
                "Nothing is written along the direction, but more is lost than that. "
                + only_wrong(found, expected)
            )
        again = attempt.tensor(found, -direction, shape=shape, axes="..., d_model")
        if not close(again, found):
            raise NotYet("Done a second time, or with the direction turned round, it must change nothing.")
    return "Matrices, heads and biases write nothing along the direction, and all else as before."


@checker("33.3")
def check_choose(attempt: Attempt) -> str:
    draw = dice.Random(1)
    cases = []
    for layers in (10, 12, 30, 7):
        rows = [
            [round(draw.uniform(low, high), 3) for _ in range(layers)]
            for low, high in ((-6, 6), (-2, 4), (0, 0.25))
        ]
        cases.append((rows, layers))
    n = 10  # cases in which each condition decides
    base = [[5.0] * n, [1.0] * n, [0.01] * n]
    for layer, which, value in (
        (2, 1, 0.0),
        (3, 1, -1.0),
        (4, 2, 0.1),
        (4, 2, 0.3),
        (8, 0, -9.0),
        (9, 0, -9.0),
        (7, 0, -8.0),
    ):
        rows = [list(row) for row in base]
        rows[0][5], rows[0][layer] = -1.0, -9.0
        rows[which][layer] = value
        cases.append((rows, n))
    cases.append(([[1.0] * n, [-1.0] * n, [0.0] * n], n))
    for layers, best in ((7, 5), (11, 8), (13, 10), (4, 3)):  # the last layer below 80 %; all scores above 0
        cases.append(([[3.0 - (k == best) for k in range(layers)], [1.0] * layers, [0.0] * layers], layers))
    same = [-2.0, 3.0, -2.0, 0.0, 5.0]  # layer 0 is not allowed and scores as layer 2
    cases.append(([same, [-1.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 5], 5))
    for (bypass, induce, kl), layers in cases:
        fits = [k for k in range(layers) if induce[k] > 0 and kl[k] < 0.1 and k < 0.8 * layers]
        expected = min(fits, key=lambda k: bypass[k]) if fits else -1
        found = whole_number(attempt(bypass, induce, kl), "the number of a layer")
        if found == expected:
            continue
        if expected == -1:
            raise NotYet("No layer meets the three conditions here: return −1, and do not guess.")
        if found == -1 and bypass[expected] > 0:
            raise NotYet(
                "All the scores are above 0 here, and you found no layer. The lowest is meant, not one below 0."
            )
        if found == -1:
            raise NotYet(
                f"You found no layer where there is one: layer {expected} meets the three conditions."
            )
        if not 0 <= found < layers:
            raise NotYet(f"There is no layer {found}: the layers are 0 to {layers - 1}.")
        if induce[found] <= 0:
            raise NotYet(
                f"Layer {found} does not bring refusals when added: its `induce` is {induce[found]:g}, and more than 0 is needed."
            )
        if kl[found] >= 0.1:
            raise NotYet(
                f"Layer {found} changes harmless answers too much: its `kl` is {kl[found]:g}, and less than 0.1 is allowed."
            )
        if found >= 0.8 * layers:
            raise NotYet(f"Layer {found} of {layers} is too late: below 0.8 of the layers is allowed.")
        if expected + 1 >= 0.8 * layers and expected > found:
            raise NotYet(
                f"Layer {expected} of {layers} is allowed too, and scores lower: {expected} is below 0.8 × {layers} = {0.8 * layers:g}."
            )
        raise NotYet(
            f"Layer {found} is allowed, but its bypass score is {bypass[found]:g}, and layer {expected} has "
            f"{bypass[expected]:g}. Which is better, few or many refusals left?"
        )
    return "The lowest bypass score among the layers that are allowed, and −1 when there is none."


def _truth(value) -> bool:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        raise NotYet(f"Return True or False; you returned a {type(value).__name__}.")
    return bool(value)


def _texts(seed: int, layers: int, d: int, count: int) -> list[torch.Tensor]:
    """Streams of texts that differ in length."""
    return [random(layers, 3 + (n + seed) % 4, d, seed=100 * seed + n) + 0.5 * n for n in range(count)]
