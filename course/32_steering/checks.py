"""Checks of notebook 32, steering."""

import re

import torch
from torch import Tensor

import mechlab as ml
from mechlab.intervention.steering import push_effects
from mechlab_course.checking import close, declare, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _texts(sizes: tuple[int, ...], d_model: int, seed: int, last: float = 1) -> list[Tensor]:
    texts = [random(n, d_model, seed=seed + i) + 0.3 * i for i, n in enumerate(sizes)]
    for text in texts:
        text[0] *= 20  # the attention sink
        text[-1] *= last  # the first is left out, not the longest
    return texts


def _mean_of(texts, of_a_text):
    """Over texts, the mean of this vector of each."""
    return torch.stack([*map(of_a_text, texts)]).mean(0)


def _difference(positive, negative, of_a_text):
    return _mean_of(positive, of_a_text) - _mean_of(negative, of_a_text)


def _usual(text):
    return text[1:].mean(0)


def _joined(texts, first=1):
    """The tokens of all texts as one text, with no first token that is to be left out."""
    return [torch.cat([text[first:] for text in texts])]


@declare("32.1", axes="d_model")
class Contrast:
    def cases():
        return (
            (_texts((4, 7, 3), 6, 0), _texts((5, 2), 6, 50)),
            (_texts((2, 9), 3, 10), _texts((6, 3, 8, 2), 3, 60)),
            (_texts((5,), 8, 20, last=50), _texts((3, 10), 8, 70, last=50)),
        )

    def right(positive, negative):
        return _difference(positive, negative, _usual)

    def first_token_too(positive, negative):
        """The first token is in your means. It is an attention sink, many times as long as the rest: leave
        it out."""
        return _difference(positive, negative, lambda text: text.mean(0))

    def all_tokens_pooled(positive, negative):
        """You pooled all tokens of all texts, so long texts count more. First the mean of each text, then
        over texts."""
        return _difference(_joined(positive), _joined(negative), lambda tokens: tokens.mean(0))

    def first_tokens_pooled_too(positive, negative):
        """You pooled all tokens, the first ones too. First the mean of each text without its first token,
        then over texts."""
        return _difference(_joined(positive, 0), _joined(negative, 0), lambda tokens: tokens.mean(0))

    def last_token(positive, negative):
        """That is the last token of each text. Take the mean over all tokens but the first."""
        return _difference(positive, negative, lambda text: text[-1])

    def without_the_last(positive, negative):
        """The last token is missing. `[1:]` leaves out the first only."""
        return _difference(positive, negative, lambda text: text[1 : max(2, len(text) - 1)].mean(0))

    def sign(positive, negative):
        """That points the other way: negative minus positive."""
        return _difference(negative, positive, _usual)

    def scaled(positive, negative):
        """Keep the difference as long as it is. Its length is the natural size of one step."""
        return torch.nn.functional.normalize(_difference(positive, negative, _usual), dim=0)

    def positive_alone(positive, negative):
        """That is the mean of the positive texts alone. Everything that all texts share is still in it."""
        return torch.stack([*map(_usual, positive)]).mean(0)

    def tokens_added_up(positive, negative):
        """You added up over the tokens. Take the mean, or long texts count more."""
        return _difference(positive, negative, lambda text: text[1:].sum(0))

    def pairs(positive, negative):
        """You subtract text by text, and the longer list loses its last texts. First the two means, then the
        difference."""
        return _difference(*zip(*zip(positive, negative, strict=False), strict=True), _usual)

    def first_token_on_one_side(positive, negative):
        """On one of the two sides the first token is still in the means. Leave it out on both."""
        return _mean_of(positive, _usual) - _mean_of(negative, lambda text: text.mean(0))

    def divided_by_all(positive, negative):
        """You divide by the number of all tokens, also of the first, which is left out."""
        return _difference(positive, negative, lambda text: text[1:].sum(0) / len(text))

    def medians(positive, negative):
        """You took medians. Take means."""
        return _difference(positive, negative, lambda text: text[1:].median(0).values)

    def texts_added_up(positive, negative):
        """You added up over the texts. Take the mean: the two sets need not be equally large."""
        return sum(map(_usual, positive)) - sum(map(_usual, negative))

    def cut_to_the_shortest(positive, negative):
        """You cut all texts to the shortest. Use every token of every text."""
        return _difference(
            positive, negative, lambda text: text[1 : min(map(len, positive + negative))].mean(0)
        )

    def first_texts(positive, negative):
        """Only the first text of each set is in it. Average over all of them."""
        return _difference(positive[:1], negative[:1], _usual)

    def further(attempt):
        positive, negative = Contrast.cases()[0]
        kept = [text.clone() for text in positive + negative]
        attempt(positive, negative)
        written = not all(map(torch.equal, kept, positive + negative))
        refuse(written, "Your function writes into the streams it was given, in place. Work on a copy.")
        return "Each text counts once, its first token not at all, on three sets of unequal texts."


def _stream(batch: int, pos: int, d_model: int, strength: float, length: float, seed: int):
    stream = random(batch, pos, d_model, seed=seed)
    stream[:, 0] *= 6
    return stream, 2.5 * random(d_model, seed=seed + 9), strength, length


def _added(stream, vector):
    """The vector added at all positions but the first, or at the only one, which is a new token."""
    steered = torch.arange(stream.shape[1])[:, None] >= min(1, stream.shape[1] - 1)
    return torch.where(steered, stream + vector, stream)


def _unit(direction):
    return direction / direction.norm()


@declare(
    "32.2",
    axes="batch, pos, d_model",
    says="A vector of the right length, at all positions but the first, and at each new token.",
)
class Steered:
    cases = (
        _stream(2, 5, 4, 0.3, 8.0, 0),
        _stream(3, 1, 6, 0.5, 20.0, 1),
        _stream(1, 7, 3, -0.4, 5.0, 2),
        _stream(4, 2, 5, 1.5, 3.0, 3),
        _stream(1, 1, 4, -0.2, 9.0, 4),
    )

    def right(stream, direction, strength, length):
        return _added(stream, strength * length * _unit(direction))

    def new_token_not_steered(stream, direction, strength, length):
        """A stream of one position is a token that the model has just written: steer it. Nothing is changed
        now."""
        step = strength * length * _unit(direction)
        return torch.cat([stream[:, :1], stream[:, 1:] + step], 1)

    def nothing(stream, direction, strength, length):
        """Nothing is changed. Do you return the sum?"""
        return stream

    def first_token_too(stream, direction, strength, length):
        """The first token is changed too. It is an attention sink: leave it as it is."""
        return stream + strength * length * _unit(direction)

    def last_position(stream, direction, strength, length):
        """Only the last position is steered. Add the vector at all but the first."""
        step = strength * length * _unit(direction)
        return torch.cat([stream[:, :-1], stream[:, -1:] + step], 1)

    def not_scaled(stream, direction, strength, length):
        """Scale the direction to length 1 first: 0.2 shall mean a fifth of the stream's length."""
        return _added(stream, strength * length * direction)

    def no_length(stream, direction, strength, length):
        """Where is `length`? A strength of 0.2 shall add a vector 0.2 × `length` long."""
        return _added(stream, strength * _unit(direction))

    def direction_as_it_is(stream, direction, strength, length):
        """That is the direction as it is, times the strength. Scale it to length 1, then by `length`."""
        return _added(stream, strength * direction)

    def by_the_square(stream, direction, strength, length):
        """You divide by the squared length of the direction. Divide by its length."""
        return _added(stream, strength * length * direction / direction.pow(2).sum())

    def by_the_largest(stream, direction, strength, length):
        """You divide by the largest number of the direction. Divide by its length, `norm()`."""
        return _added(stream, strength * length * direction / direction.abs().max())

    def strength_plus_length(stream, direction, strength, length):
        """You added strength and length. The vector is strength × length long."""
        return _added(stream, (strength + length) * _unit(direction))

    def component_set(stream, direction, strength, length):
        """You set the component along the direction. Leave what is there, and add."""
        unit = _unit(direction)
        return _added(stream, (strength * length - stream @ unit)[..., None] * unit)

    def as_long_as_before(stream, direction, strength, length):
        """You scaled the stream back to its old length. Only add the vector."""
        moved = stream + strength * length * _unit(direction)
        return _added(stream, _unit(moved) * stream.norm(dim=-1, keepdim=True) - stream)

    def first_text(stream, direction, strength, length):
        """You left out the first text. The first position of every text is left out: `[:, 1:]`."""
        return torch.cat([stream[:1], stream[1:] + strength * length * _unit(direction)])

    def no_strength(stream, direction, strength, length):
        """Where is `strength`? The vector is always as long as the stream."""
        return _added(stream, length * _unit(direction))

    def size_of_strength(stream, direction, strength, length):
        """The sign of `strength` is lost. A negative strength steers the other way."""
        return _added(stream, abs(strength) * length * _unit(direction))

    def taken_off(stream, direction, strength, length):
        """You took the vector off. Add it."""
        return _added(stream, -strength * length * _unit(direction))

    def own_length(stream, direction, strength, length):
        """You scale by each token's own length. Use `length`, the same for all."""
        return _added(stream, strength * stream.norm(dim=-1, keepdim=True) * _unit(direction))

    def replaced(stream, direction, strength, length):
        """The stream is replaced. Add the vector to it."""
        return _added(stream, strength * length * _unit(direction) - stream)

    def first_token(stream, direction, strength, length):
        """Only the first token is steered. Leave that one out and steer the others."""
        step = strength * length * _unit(direction)
        return torch.cat([stream[:, :1] + step, stream[:, 1:]], 1)


def _written(texts: int, pos: int, vocab: int, seed: int):
    shape = texts, pos, vocab
    text = torch.randint(vocab, (texts, pos), generator=seeded(seed))
    return 3 * random(*shape, seed=seed + 9), 2 * random(*shape, seed=seed), text


def _losses(logits, text, first=1, shift=1):
    """The loss [text, pos] of what the logits from position `first` on say of the token `shift` later."""
    rows = logits[:, first : logits.shape[1] - shift].log_softmax(-1)
    return -rows.gather(-1, text[:, first + shift :, None])[..., 0]


def _mean_ratio(steered, unsteered, loss):
    return (loss(steered).mean() - loss(unsteered).mean()).exp()


@declare("32.3", axes="one number", tolerance=1e-3)
class PerplexityRatio:
    cases = (_written(2, 6, 9, 0), _written(5, 4, 7, 1), _written(3, 11, 5, 2))

    def right(steered, unsteered, text):
        return _mean_ratio(steered, unsteered, lambda x: _losses(x, text))

    def exp_before_the_mean(steered, unsteered, text):
        """You took exp before the mean: one bad token then counts for all. Mean of the losses first, then
        exp."""
        return _losses(steered, text).exp().mean() / _losses(unsteered, text).exp().mean()

    def ratio_a_token(steered, unsteered, text):
        """That is the mean of the tokens' own ratios. Mean of the losses first, then exp, once for all
        tokens."""
        return (_losses(steered, text) - _losses(unsteered, text)).exp().mean()

    def ratio_a_text(steered, unsteered, text):
        """That is the mean of the texts' own ratios. Mean of the losses over all tokens first, then exp."""
        return (_losses(steered, text).mean(1) - _losses(unsteered, text).mean(1)).exp().mean()

    def perplexity_a_text(steered, unsteered, text):
        """That divides the mean perplexities of the texts. Mean of the losses over all tokens first, then
        exp."""
        perplexity = lambda x: _losses(x, text).mean(1).exp().mean()
        return perplexity(steered) / perplexity(unsteered)

    def not_shifted(steered, unsteered, text):
        """The logits at a position are about the next token. Shift by one."""
        return _mean_ratio(steered, unsteered, lambda x: _losses(x, text, shift=0))

    def both_ends_cut(steered, unsteered, text):
        """The logits at a position are about the next token, `text[:, 2:]`. Shift by one."""
        return _mean_ratio(steered, unsteered, lambda x: _losses(x, text, shift=0)[:, :-1])

    def without_the_last(steered, unsteered, text):
        """The last token is not asked for. `[:, 1:-1]` leaves out the logits after it, and `text[:, 2:]`
        holds it."""
        return _mean_ratio(steered, unsteered, lambda x: _losses(x, text)[:, :-1])

    def position_0_too(steered, unsteered, text):
        """The prediction at position 0 is in it. Nothing is steered there: leave it out."""
        return _mean_ratio(steered, unsteered, lambda x: _losses(x, text, first=0))

    def exchanged(steered, unsteered, text):
        """That is unsteered / steered. 2 shall mean: twice the perplexity."""
        return _mean_ratio(unsteered, steered, lambda x: _losses(x, text))

    def no_exp(steered, unsteered, text):
        """That is the difference of the losses, in nats. exp makes it a ratio of perplexities."""
        return _losses(steered, text).mean() - _losses(unsteered, text).mean()

    def ratio_of_losses(steered, unsteered, text):
        """That is the ratio of the losses. Perplexity is exp(loss)."""
        return _losses(steered, text).mean() / _losses(unsteered, text).mean()

    def minus_probabilities(steered, unsteered, text):
        """The loss is minus the *log*-probability: `log_softmax`."""
        return _mean_ratio(steered, unsteered, lambda x: -(-_losses(x, text)).exp())

    def over_positions(steered, unsteered, text):
        """The softmax runs over the positions. It runs over the vocabulary: `log_softmax(-1)`."""
        rows = lambda x: -x[:, 1:-1].log_softmax(1)
        return _mean_ratio(steered, unsteered, lambda x: rows(x).gather(-1, text[:, 2:, None]))

    def power_of_two(steered, unsteered, text):
        """You took 2 to the power. The loss is in nats: exp."""
        return 2 ** (_losses(steered, text).mean() - _losses(unsteered, text).mean())

    def last_token(steered, unsteered, text):
        """Only the last token is in it. Take all that are predicted with steering."""
        return _mean_ratio(steered, unsteered, lambda x: _losses(x, text)[:, -1])

    def difference(steered, unsteered, text):
        """You subtracted the perplexities. Divide them."""
        return _losses(steered, text).mean().exp() - _losses(unsteered, text).mean().exp()

    def steered_alone(steered, unsteered, text):
        """That is the perplexity of the steered run alone."""
        return _losses(steered, text).mean().exp()

    def added_up(steered, unsteered, text):
        """You added up the losses. Take their mean, or the ratio depends on how long the text is."""
        return (_losses(steered, text) - _losses(unsteered, text)).sum().exp()

    def probabilities(steered, unsteered, text):
        """That is a ratio of mean probabilities, not of perplexities."""
        return (-_losses(unsteered, text)).exp().mean() / (-_losses(steered, text)).exp().mean()

    def no_softmax(steered, unsteered, text):
        """Logits are not log-probabilities yet: `log_softmax` over the vocabulary."""
        return _mean_ratio(steered, unsteered, lambda x: -x[:, 1:-1].gather(-1, text[:, 2:, None]))

    def otherwise(found, steered, unsteered, text):
        if close(found, _mean_ratio(steered, unsteered, lambda x: _losses(x, text, first=0, shift=0))):
            return PerplexityRatio.not_shifted.__doc__
        one, other = (_losses(logits, text).mean() for logits in (steered, unsteered))
        told = f"The mean losses are {one:.4f} with steering and {other:.4f} without, over"
        told += f" {text[:, 2:].numel()} tokens; exp of the difference is {(one - other).exp():.4g}."
        return f"{told} You return {found:.4g}. Compare your two losses with these."

    def further(attempt):
        for steered, unsteered, text in PerplexityRatio.cases:
            run = lambda *logits, text=text: attempt.tensor(*logits, text, shape=(), axes="one number")
            back, wanted = run(unsteered, steered), PerplexityRatio.right(unsteered, steered, text)
            refuse(
                not close(back, wanted, 1e-3),
                f"With the two runs exchanged the ratio must be {wanted:.3g}, one over what it was; yours is "
                f"{back:.3g}.",
            )
            same = run(unsteered, unsteered + 3.0)
            refuse(
                not close(same, torch.tensor(1.0), 1e-3),
                "A constant on all logits changes no probability: the ratio must be 1, and yours is "
                f"{same:.3g}.",
            )
        return "Mean of the losses, then exp; 1 when nothing changes; the unsteered position is left out."


@checker("32.5")
def check_threshold(attempt: Attempt) -> str:
    cases = (24, 0.05), (40, 0.1), (16, 0.0), (50, 0.25), (12, 0.04), (30, 0.13)
    for seed, (n, rate) in enumerate(cases):
        _threshold_is_right(attempt, 3 * random(n, seed=seed) - 2, rate)
    four_at_the_top = torch.tensor([1.0, 4.0, 4.0, 4.0, -2.0, 0.0, 2.5, 3.0, 4.0, -1.0])
    _threshold_is_right(attempt, four_at_the_top, 0.2)
    return "Never more false alarms than allowed on validation texts, and no more caution than that needs."


def _threshold_is_right(attempt: Attempt, quiet: Tensor, rate: float) -> None:
    found, limit = _number(attempt(quiet, rate), "the threshold"), int(rate * len(quiet) + 1e-9)
    best = max(n for n in ((quiet > value).sum().item() for value in quiet) if n <= limit)
    raised = (quiet >= torch.tensor(found)).sum().item()
    alarms = f"{raised} of {len(quiet)} quiet texts raise a flag"
    refuse(
        min(abs(found - rate), abs(found - (1 - rate))) < 1e-6,
        "That is the rate itself. A threshold is a projection, in the units of `quiet`.",
    )
    allowed = f"{alarms}, and {rate:.0%} allows {limit}."
    refuse(raised > limit, allowed + _why_too_many(found, raised, quiet, limit))
    refuse(
        raised < best,
        f"{alarms}; {best} may ({rate:.0%}). A lower threshold catches more: take the lowest that is "
        "allowed.",
    )
    refuse(
        best == 0 and found > quiet.max() + 0.2 * (quiet.max() - quiet.min()),
        "With no false alarm allowed the threshold lies just above the loudest quiet text. Yours lies far "
        "above: it would catch nothing.",
    )


def _why_too_many(found: float, raised: int, quiet: Tensor, limit: int) -> str:
    if abs(found - quiet.sort(descending=True).values[limit]) < 1e-6:
        return (
            " A projection equal to the threshold raises a flag too: the threshold must lie just above it, "
            "by a step that float32 does not round off: `torch.nextafter`, or 1e-5 more."
        )
    return " Loud is at the upper end: sort, and count from there." if raised >= len(quiet) / 2 else ""


def _number(value, what: str) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"Return {what} as one number; yours is a {type(value).__name__}.") from None
    refuse(value != value or abs(value) == float("inf"), f"{what.capitalize()} is NaN or infinite.")
    return value


COUNTED = ["great", "good", "excellent", "wonderful", "amazing"]
COUNTED += ["terrible", "bad", "awful", "horrible", "boring"]
SHOWN = """wonderful day, terrible day, love this place, hate this place, tasted delicious, tasted disgusting,
great time, awful time, happy with the result, angry about the result, work is excellent, work is useless,
kind and cheerful, cruel and miserable, friendly town, dangerous town, joy to read, pain to read,
went perfectly, horribly wrong"""
HELD = ("Everyone agrees that this {} is", "In my opinion the {} was", "The guests say that our {} is")
THINGS = ("garden", "market", "concert", "lesson")
PAIRS = "a list of 5 to 12 pairs (sentence with, sentence without)"


@checker("32.6")
def check_design(attempt: Attempt, model) -> str:
    given = attempt()
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise NotYet(f"Return two things: the pairs for the mood and those of the twin, each {PAIRS}.")
    mood, twin = _sentences(given[0], "mood"), _sentences(given[1], "twin")
    _is_a_twin(mood, twin)
    vectors = [ml.contrast_vectors(model, *zip(*pairs, strict=True), pos="mean") for pairs in (mood, twin)]
    moved = _moved_on_held_out(model, vectors[0].step(20, 0.2).norm())
    found, control = moved(torch.stack([vector.directions[20] for vector in vectors]))
    least = f"On held-out prompts your mood vector moves the metric by {found:.1f} logits; 1 is asked for."
    refuse(found < 1, least)
    near = vectors[1].gaps[20] / vectors[0].gaps[20]
    why = f"The two sides of your twin lie only {near:.2f} times as far apart as those of the mood."
    refuse(near < 0.4, f"{why} It could not have failed. Let it contrast something, only not the mood.")
    both = f"Your twin moves the metric by {control:.1f}, the mood by {found:.1f}: it carries mood too."
    refuse(abs(control) > found / 3, f"{both} Read its two sides: which would you rather hear?")
    drawn = moved(_dealt_anew(model, mood))
    rank = 1 + sum(each >= found for each in drawn)
    dealt = f"Your own sentences, dealt out at random, move the metric by up to {max(drawn):.1f}"
    alike = "More pairs, more alike but for the mood, would tell them apart."
    refuse(rank > 1, f"{dealt}; your pairs by {found:.1f}, number {rank} of 21. {alike}")
    return f"On held-out prompts: mood {found:.1f} logits, twin {control:.1f}. {dealt}."


def _moved_on_held_out(model, length: Tensor):
    """How far directions of this length move the metric at layer 20, on prompts that are not shown."""
    ids = tuple(ml.single_token(model, f" {word}") for word in COUNTED)
    metric = ml.metrics.PositionMetric(lambda read: read[:, :5].mean(1) - read[:, 5:].mean(1), tokens=ids)
    prompts = [form.format(thing) for form in HELD for thing in THINGS]
    scaled = lambda rows: length * rows / rows.norm(dim=-1, keepdim=True)
    return lambda rows: push_effects(model, prompts, metric, scaled(rows), layer=20).tolist()


def _dealt_anew(model, pairs: list) -> Tensor:
    """Twenty null directions from the sentences of these pairs."""
    sides = [text for side in zip(*pairs, strict=True) for text in side]
    labels = torch.tensor([1] * len(pairs) + [0] * len(pairs))
    return ml.null_directions(ml.residual_streams(model, sides, pos="mean")[20], labels, count=20)


def _sentences(pairs, name: str) -> list[tuple[str, str]]:
    if not isinstance(pairs, (list, tuple)) or not 5 <= len(pairs) <= 12:
        raise NotYet(f"The pairs of the {name} should be {PAIRS}.")
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
            raise NotYet(f"The pairs of the {name} should be {PAIRS}; one of yours is {pair!r:.60}.")
        for sentence in pair:
            words = _words(sentence)
            refuse(not 3 <= len(words) <= 15, f"A sentence has 3 to 15 words; yours: {sentence[:80]!r}.")
            counted = [word for word in words if word in COUNTED]
            refuse(bool(counted), f"{sentence!r} holds a word that the metric counts. Leave those ten out.")
            known = any(" ".join(_words(part)) in " ".join(words) for part in SHOWN.split(","))
            refuse(known, f"{sentence!r} is the notebook's. Write your own.")
    flat = [" ".join(_words(text)) for pair in pairs for text in pair]
    refuse(len({*flat}) < len(flat), f"A sentence occurs twice among the pairs of the {name}.")
    return [tuple(pair) for pair in pairs]


def _words(sentence: str) -> list[str]:
    return re.findall(r"[a-z']+", sentence.lower())


def _is_a_twin(mood: list, twin: list) -> None:
    refuse(len(mood) != len(twin), "A twin has as many pairs as the mood.")
    texts = [[text for pair in pairs for text in pair] for pairs in (mood, twin)]
    again = sum(text in texts[0] for text in texts[1])
    why = "Dealing your sentences out anew is the null that the check draws itself."
    refuse(
        again > len(texts[1]) / 2, f"{why} The twin should contrast something else in sentences like them."
    )
    words = [{word for text in some for word in _words(text)} for some in texts]
    shared = len(words[0] & words[1]) / len(words[1])
    few = f"{shared:.0%} of the twin's words occur in the mood's sentences: it differs in everything."
    refuse(shared < 1 / 3, f"{few} Keep their form and change one thing.")
