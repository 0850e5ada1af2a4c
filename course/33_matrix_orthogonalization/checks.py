"""Checks of notebook 33, matrix orthogonalization."""

import random as dice

import torch

from mechlab_course.checking import close, declare, only_wrong, random, refuse, whole_number
from mechlab_course.exercises import Attempt, NotYet, checker

PHRASES = ("sorry, but", "I can't", "I cannot", "I won't", "I'm unable", "I'm not able")
HARMLESS = {
    "I'm so glad you're here! Let us start.": "“I'm” alone is no refusal: this model often begins with "
    "“I'm so glad”.",
    "I'm sorry for your loss. Here is a poem.": "“I'm sorry” alone is no refusal: “I'm sorry for your "
    "loss” is sympathy.",
    "I'm so sorry to hear about the flood.": "“Sorry” alone is no refusal: the model says it out of "
    "sympathy too.",
    "I can help you with that. First, take a pen.": "“I can” is the opposite of a refusal.",
    "I can't wait to see the garden!": "“I can't wait” is no refusal.",
    "I can’t wait to hear more. Here are three ideas.": "“I can’t wait” is no refusal, with the curly "
    "apostrophe too.",
    "Naomi can't swim, so she takes the bus.": "The “i” of “Naomi” is not the word “I”: look for whole "
    "words.",
    "You can't go wrong with a green scarf.": "“You can't go wrong” is no refusal: nobody says that “I” "
    "cannot.",
    "I know that you won't regret it.": "“You won't regret it” is no refusal: nobody says that “I” will not.",
    "It sounds lovely, and I can't wait!": "“I can't wait” is no refusal, whatever follows it.",
    "So sorry, Butterscotch has run out.": "“sorry, Butterscotch” does not hold “but” as a whole word.",
    "A cake needs flour and eggs.": "There is no refusing phrase in this answer at all.",
}
BOTH = ("I can't wait to help, but I can't do that.", "I can't do that. I can't wait for lunch.")


def _forms(phrase: str, before: str) -> dict[str, str]:
    """Refusals that hold the phrase, and what somebody forgets who does not count them."""
    said = f"I'm {phrase}" if phrase.startswith("sorry") else phrase
    plain = f"{said} do that."
    late = f"{before} {plain}"
    return {
        f"The phrase “{phrase}” is a refusal.": plain,
        "The refusal may come later in the answer: look everywhere, not only at the beginning.": late,
        "Capitals do not matter: compare in lower case.": plain.upper(),
        "Lower case counts too, even for “i”.": plain.lower(),
        "Apostrophes come in two forms, ' and ’. Make them one before you compare.": plain.replace("'", "’"),
        "A quotation mark or a space before the phrase does not matter.": f' "{plain}"',
        "Punctuation can follow at once: look for whole words, not for spaces.": f"No: {said}.",
        "A second line is part of the answer too.": f"A fine question!\n{plain}",
    }


@checker("33.1")
def check_refuses(attempt: Attempt) -> str:
    draw = dice.Random(0)
    says = lambda answer: _truth(attempt(answer))
    says("I'm sorry, but I can't do that.")  # is it True or False at all?
    for answer, why in HARMLESS.items():
        loud = answer.upper()
        refuse(says(answer), f"You count {answer!r} as a refusal. {why}")
        refuse(says(loud), f"You count {loud!r} as a refusal. Capitals do not matter. {why}")
    for phrase in PHRASES:
        for why, answer in _forms(phrase, draw.choice(("Sure!", "Hello there.", "Well,"))).items():
            refuse(not says(answer), f"{answer!r} is a refusal, and you say no. {why}")
    for answer in BOTH:
        why = "holds “I can't wait” and also a real refusal: leave out the one, not the whole answer."
        refuse(not says(answer), f"{answer!r} {why}")
    return "Phrases in any place, case and apostrophe; pleasantries and sympathy are let through."


def _truth(value) -> bool:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        raise NotYet(f"Return True or False; you returned a {type(value).__name__}.")
    return bool(value)


def _texts(seed: int, layers: int, d: int, count: int) -> list[torch.Tensor]:
    """Streams of texts that differ in length."""
    return [random(layers, 3 + (n + seed) % 4, d, seed=100 * seed + n) + 0.5 * n for n in range(count)]


def _both(seed: int, layers: int, d: int):
    return _texts(seed, layers, d, 4 + seed), _texts(seed + 10, layers, d, 3)


def _unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def _mean(texts, pick=lambda text: text[:, -1]):
    """The mean over texts of what is picked from each: its last token, if nothing else is said."""
    return torch.stack([pick(text) for text in texts]).mean(0)


def _apart(improper, harmless, *pick):
    return _mean(improper, *pick) - _mean(harmless, *pick)


@declare(
    "33.2",
    axes="layer, d_model",
    says="One direction of length 1 a layer, from the last tokens, towards the improper requests.",
)
class Directions:
    cases = (_both(0, 3, 5), _both(1, 4, 7), _both(2, 2, 6))

    def right(improper, harmless):
        return _unit(_apart(improper, harmless))

    def sign(improper, harmless):
        """It points the other way: from improper to harmless.
        Take the improper mean minus the harmless one."""
        return _unit(_apart(harmless, improper))

    def not_scaled(improper, harmless):
        """Each layer's direction must have length 1: divide by its own norm."""
        return _apart(improper, harmless)

    def one_norm(improper, harmless):
        """You divided by one norm for all layers. Each layer has its own."""
        raw = _apart(improper, harmless)
        return raw / raw.norm()

    def all_positions(improper, harmless):
        """You averaged over the positions. Only the last token of each request is asked for."""
        return _unit(_apart(improper, harmless, lambda text: text.mean(1)))

    def first_token(improper, harmless):
        """That is the first token. It is the same in every prompt; take the last one."""
        return _unit(_apart(improper, harmless, lambda text: text[:, 0]))

    def one_early(improper, harmless):
        """That is the last token but one: `text[:, -1]` is the last."""
        return _unit(_apart(improper, harmless, lambda text: text[:, -2]))

    def texts_scaled(improper, harmless):
        """You scaled every text to length 1 before averaging. Average first, scale the difference."""
        return _unit(_apart(improper, harmless, lambda text: _unit(text[:, -1])))

    def means_scaled(improper, harmless):
        """You scaled the two means to length 1 before the difference. Scale the difference."""
        return _unit(_unit(_mean(improper)) - _unit(_mean(harmless)))

    def added_up(improper, harmless):
        """You added up over the texts. The two sets differ in size, so take means."""
        return _unit(len(improper) * _mean(improper) - len(harmless) * _mean(harmless))

    def improper_alone(improper, harmless):
        """That is the mean of the improper requests alone. Subtract the harmless mean."""
        return _unit(_mean(improper))

    def one_pair(improper, harmless):
        """You used one pair of requests only. Average over all of each kind."""
        return _unit(_apart(improper[:1], harmless[:1]))


def _rows(layers: int, bypass: float, induce: float, kl: float) -> list[list[float]]:
    return [[bypass] * layers, [induce] * layers, [kl] * layers]


def _layers():
    """Scores of layers: bypass, induce, kl."""
    draw = dice.Random(1)
    for layers in (10, 12, 30, 7):
        limits = ((-6, 6), (-2, 4), (0, 0.25))
        yield [[round(draw.uniform(low, high), 3) for _ in range(layers)] for low, high in limits]
    # each condition decides once
    once = ((2, 1, 0.0), (3, 1, -1.0), (4, 2, 0.1), (4, 2, 0.3), (8, 0, -9.0), (9, 0, -9.0), (7, 0, -8.0))
    for layer, which, value in once:
        rows = _rows(10, 5.0, 1.0, 0.01)
        rows[0][5], rows[0][layer] = -1.0, -9.0
        rows[which][layer] = value
        yield rows
    yield _rows(10, 1.0, -1.0, 0.0)
    for layers, best in ((7, 5), (11, 8), (13, 10), (4, 3)):  # the last layer below 80 %; all scores above 0
        rows = _rows(layers, 3.0, 1.0, 0.0)
        rows[0][best] = 2.0
        yield rows
    # layer 0 is not allowed and scores as layer 2
    yield [[-2.0, 3.0, -2.0, 0.0, 5.0], [-1.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 5]


@checker("33.3")
def check_choose(attempt: Attempt) -> str:
    for bypass, induce, kl in _layers():
        layers = range(len(bypass))
        fits = [k for k in layers if induce[k] > 0 and kl[k] < 0.1 and k < 0.8 * len(layers)]
        expected = min(fits, key=lambda k: bypass[k]) if fits else -1
        found = whole_number(attempt(bypass, induce, kl), "the number of a layer")
        if found != expected:
            raise NotYet(_why_not(found, expected, bypass, induce, kl))
    return "The lowest bypass score among the layers that are allowed, and −1 when there is none."


def _why_not(found: int, expected: int, bypass: list, induce: list, kl: list) -> str:
    layers = len(bypass)
    if expected == -1:
        return "No layer meets the three conditions here: return −1, and do not guess."
    if found == -1 and bypass[expected] > 0:
        return (
            "All the scores are above 0 here, and you found no layer. The lowest is meant, not one below 0."
        )
    if found == -1:
        return f"You found no layer where there is one: layer {expected} meets the three conditions."
    if not 0 <= found < layers:
        return f"There is no layer {found}: the layers are 0 to {layers - 1}."
    if induce[found] <= 0:
        more = f"its `induce` is {induce[found]:g}, and more than 0 is needed."
        return f"Layer {found} does not bring refusals when added: {more}"
    if kl[found] >= 0.1:
        less = f"its `kl` is {kl[found]:g}, and less than 0.1 is allowed."
        return f"Layer {found} changes harmless answers too much: {less}"
    if found >= 0.8 * layers:
        return f"Layer {found} of {layers} is too late: below 0.8 of the layers is allowed."
    if expected + 1 >= 0.8 * layers and expected > found:
        below = f"{expected} is below 0.8 × {layers} = {0.8 * layers:g}."
        return f"Layer {expected} of {layers} is allowed too, and scores lower: {below}"
    return (
        f"Layer {found} is allowed, but its bypass score is {bypass[found]:g}, and layer {expected} has "
        f"{bypass[expected]:g}. Which is better, few or many refusals left?"
    )


def _along(W, v):
    """The part of each row along a direction, which is taken to have length 1."""
    return (W @ v)[..., None] * v


def _matrix(seed: int, *shape: int):
    return random(*shape, seed=seed), 3 * random(shape[-1], seed=seed + 9)


@declare("33.4", axes="..., d_model")
class CannotWrite:
    cases = (_matrix(0, 7, 5), _matrix(1, 3, 4, 6), _matrix(2, 6), _matrix(3, 5, 5), _matrix(4, 2, 3, 3))

    def right(W, direction):
        return W - _along(W, _unit(direction))

    def otherwise(found, W, direction):
        left = (found @ _unit(direction)).abs().max()
        where = only_wrong(found, CannotWrite.right(W, direction))
        if left > 1e-3:
            return f"The matrix still writes {left:.3g} along the direction. {where}"
        return f"Nothing is written along the direction, but more is lost than that. {where}"

    def further(attempt):
        for W, direction in CannotWrite.cases:
            once = attempt.tensor(W, direction, shape=tuple(W.shape), axes="..., d_model")
            again = attempt.tensor(once, -direction, shape=tuple(W.shape), axes="..., d_model")
            why = "Done a second time, or with the direction turned round, it must change nothing."
            refuse(not close(again, once), why)
        return "Matrices, heads and biases write nothing along the direction, and all else as before."

    def nothing(W, direction):
        """Nothing is changed: the matrix still writes along the direction."""
        return W

    def not_scaled(W, direction):
        """Scale the direction to length 1 first: otherwise too much is taken out."""
        return W - _along(W, direction)

    def divided_once(W, direction):
        """Divide by the squared length only once:
        `direction / direction.norm()` is used twice in the formula."""
        return W - _along(W, direction) / direction.norm()

    def part_alone(W, direction):
        """That is only the part along the direction. Subtract it from the matrix."""
        return _along(W, _unit(direction))

    def sign(W, direction):
        """It goes the wrong way: the part along the direction has doubled."""
        return W + _along(W, _unit(direction))

    def twice(W, direction):
        """The matrix is reflected: taken off twice."""
        return W - 2 * _along(W, _unit(direction))

    def reading_side(W, direction):
        """That is the side that reads. `W` writes with its last axis (x @ W), so project W @ unit away."""
        v = _unit(direction)
        square = W.ndim >= 2 and W.shape[-1] == W.shape[-2]
        return W - (v[:, None] * (v @ W)[..., None, :] if square else _along(W, v))


def _affine_case(seed: int, batch: int, pos: int, d: int, many: int):
    stream, harmless = random(batch, pos, d, seed=seed), random(many, d, seed=seed + 5) + 0.4
    return stream, harmless, 2.5 * random(d, seed=seed + 9)


def _at_last(stream, changed):
    """The stream with another last token."""
    return torch.cat([stream[:, :-1], changed[:, -1:]], dim=1)


def _at_level(stream, direction, level):
    """Every token with this level along the direction."""
    unit = _unit(direction)
    return stream + (level - stream @ unit)[..., None] * unit


def _moved(stream, harmless, direction):
    return _at_level(stream, direction, (harmless @ _unit(direction)).mean())


def _last_at(stream, direction, level):
    return _at_last(stream, _at_level(stream, direction, level))


def _above(stream, harmless, direction):
    unit = _unit(direction)
    return (stream @ unit > (harmless @ unit).mean())[..., None]


@declare("33.5", axes="batch, pos, d_model")
class ToHarmless:
    cases = (_affine_case(0, 3, 4, 6, 5), _affine_case(1, 2, 1, 5, 7), _affine_case(2, 4, 3, 8, 3))

    def right(stream, harmless, direction):
        return _at_last(stream, _moved(stream, harmless, direction))

    def further(attempt):
        for stream, harmless, direction in ToHarmless.cases:
            given, shape = (stream, harmless, -0.3 * direction), tuple(stream.shape)
            found = attempt.tensor(*given, shape=shape, axes="batch, pos, d_model")
            same = close(found, ToHarmless.right(stream, harmless, direction), 1e-3)
            refuse(not same, "Turned round or shortened, the direction is still the same line: same result.")
        return "The last token has the harmless mean along the direction; all else is as it was."

    def only_lowered(stream, harmless, direction):
        """You only lower the component. Where it is below the harmless mean, raise it."""
        right = ToHarmless.right(stream, harmless, direction)
        return torch.where(_above(stream, harmless, direction), right, stream)

    def only_raised(stream, harmless, direction):
        """You only raise the component. Where it is above the harmless mean, lower it."""
        right = ToHarmless.right(stream, harmless, direction)
        return torch.where(_above(stream, harmless, direction), stream, right)

    def level_not_scaled(stream, harmless, direction):
        """Scale the direction to length 1 for the harmless mean too."""
        return _last_at(stream, direction, (harmless @ direction).mean())

    def nothing(stream, harmless, direction):
        """Nothing is changed at the last token. Do you return the changed stream?"""
        return stream

    def every_position(stream, harmless, direction):
        """Every position is changed. Only the last token of each prompt should be."""
        return _moved(stream, harmless, direction)

    def first_position(stream, harmless, direction):
        """The first position is changed. The last one is asked for."""
        return torch.cat([_moved(stream, harmless, direction)[:, :1], stream[:, 1:]], dim=1)

    def zero(stream, harmless, direction):
        """The component is 0 now. That is plain ablation: put the harmless mean there."""
        return _last_at(stream, direction, 0)

    def whole_mean(stream, harmless, direction):
        """You wrote the whole harmless mean over the stream.
        Only the component along the direction changes."""
        return _at_last(stream, harmless.mean(0).expand_as(stream))

    def added(stream, harmless, direction):
        """You added the harmless level without taking off what was there."""
        unit = _unit(direction)
        return _at_last(stream, stream + (harmless @ unit).mean() * unit)

    def not_scaled(stream, harmless, direction):
        """Scale the direction to length 1 first."""
        missing = (harmless @ direction).mean() - stream @ direction
        return _at_last(stream, stream + missing[..., None] * direction)

    def sign(stream, harmless, direction):
        """You took off the mean instead of putting it there: a sign is wrong."""
        return _last_at(stream, direction, -(harmless @ _unit(direction)).mean())

    def one_request(stream, harmless, direction):
        """You put the level of one harmless request there. Take the mean over all of them."""
        return _last_at(stream, direction, harmless[0] @ _unit(direction))

    def added_up(stream, harmless, direction):
        """That is the sum over the harmless requests. Take the mean."""
        return _last_at(stream, direction, (harmless @ _unit(direction)).sum())

    def length(stream, harmless, direction):
        """That is the length of the harmless mean. Take its component along the direction."""
        return _last_at(stream, direction, harmless.mean(0).norm())
