"""Checks of notebook 26, sparse autoencoders."""

import re
from collections import Counter
from itertools import combinations

import torch
from torch.nn.functional import normalize

from mechlab.discovery.sae import SparseAutoencoder
from mechlab.reference import data_dir
from mechlab_course.checking import close, declare, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


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
    cases = (_weights(5, 4, 7, 3, 0.0, 0), _weights(3, 6, 5, 3, -3.0, 1), _weights(9, 3, 8, 1, 0.5, 2))

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

    def bias_too_late(x, W_enc, b_enc, b_dec, k):
        """You choose the k before `b_enc` is added. It decides with which are largest."""
        before = (x - b_dec) @ W_enc
        return _kept(before + b_enc, before, k).relu()

    def bias_taken_off(x, W_enc, b_enc, b_dec, k):
        """You took `b_enc` off. Add it."""
        return _largest((x - b_dec) @ W_enc - b_enc, k)

    def first_places(x, W_enc, b_enc, b_dec, k):
        """The values are right, but stand in the first k places. Each keeps its own place: `scatter`."""
        best, found = ((x - b_dec) @ W_enc + b_enc).topk(k).values.relu(), x.new_zeros(len(x), len(b_enc))
        found[:, :k] = best
        return found

    def sorted_by_size(x, W_enc, b_enc, b_dec, k):
        """Your features are sorted. Each keeps its own place: `scatter` puts the largest back."""
        return ((x - b_dec) @ W_enc + b_enc).sort(-1, descending=True).values.relu()

    def one_alone(x, W_enc, b_enc, b_dec, k):
        """You keep one feature of each token, the largest. The k largest are wanted."""
        return _largest((x - b_dec) @ W_enc + b_enc, 1)

    def one_more(x, W_enc, b_enc, b_dec, k):
        """You keep one feature too many: k + 1."""
        before = (x - b_dec) @ W_enc + b_enc
        return _largest(before, min(k + 1, before.shape[1]))

    def relu_too_early(x, W_enc, b_enc, b_dec, k):
        """Your ReLU comes before `b_enc` is added. It comes last."""
        before = ((x - b_dec) @ W_enc).relu() + b_enc
        return _largest(before, k)

    def above_the_kth(x, W_enc, b_enc, b_dec, k):
        """You took the k-th largest off from all. It only decides who stays: the others keep their values."""
        before = (x - b_dec) @ W_enc + b_enc
        return (before - before.topk(k).values[:, -1:]).relu()

    def same_for_all(x, W_enc, b_enc, b_dec, k):
        """You chose the same k features for all tokens. Each token has its own."""
        before = (x - b_dec) @ W_enc + b_enc
        return _kept(before, before.mean(0, keepdim=True).expand_as(before), k).relu()

    def shares(x, W_enc, b_enc, b_dec, k):
        """A softmax makes shares of them. Each feature keeps its own size."""
        before = (x - b_dec) @ W_enc + b_enc
        best = before.topk(k)
        return torch.zeros_like(before).scatter(-1, best.indices, best.values.softmax(-1))

    def smallest(x, W_enc, b_enc, b_dec, k):
        """These are the k smallest. Take the largest."""
        before = (x - b_dec) @ W_enc + b_enc
        return _kept(before, -before, k).relu()

    def of_all_tokens(x, W_enc, b_enc, b_dec, k):
        """You take the largest of all tokens together. Each token keeps its own k."""
        before = (x - b_dec) @ W_enc + b_enc
        return _kept(before.view(1, -1), before.view(1, -1), k * len(x)).view_as(before).relu()

    def sizes(x, W_enc, b_enc, b_dec, k):
        """You took sizes. Of the k, those below zero become 0."""
        before = (x - b_dec) @ W_enc + b_enc
        return _kept(before, before, k).abs()

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

    def mean_of_tokens(x, features, W_dec, b_dec, index, value):
        """You took off the feature's mean over the tokens. Each token has its own old value."""
        return x + (value - features[:, index].mean()) * W_dec[index]

    def multiplied(x, features, W_dec, b_dec, index, value):
        """You multiplied the old value by the new one. Take the old one off: new − old."""
        return x + value * features[:, [index]] * W_dec[index]

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

    def b_dec_lost(x, features, W_dec, b_dec, index, value):
        """You took `b_dec` off. It stays in x."""
        return x + (value - features[:, [index]]) * W_dec[index] - b_dec

    def component_of_x(x, features, W_dec, b_dec, index, value):
        """You took off x's component along the direction. The feature's old value is in `features`."""
        return x + (value - x @ W_dec[index])[:, None] * W_dec[index]

    def largest_taken_off(x, features, W_dec, b_dec, index, value):
        """You took off the feature's largest value. Each token has its own old value."""
        return x + (value - features[:, index].max()) * W_dec[index]

    def every_feature(x, features, W_dec, b_dec, index, value):
        """Every feature is set. Only one may change."""
        return x + (value - features) @ W_dec


def _errors_to_match(seed: int):
    """Activations that fill few directions of 40 dimensions, and errors that fill somewhat more of them."""
    wide = torch.tensor([9.0, 6, 4, 3] + [0.3] * 36)
    turned = torch.linalg.qr(random(40, 40, seed=seed + 9))[0]
    x, streams = (2 + random(n, 40, seed=seed + n) * wide @ turned for n in (300, 500))
    errors = random(300, 40, seed=seed + 2) * wide.sqrt() @ turned
    return x, errors * torch.linspace(0.2, 3, 300)[:, None], streams


def _in_few(rows, streams) -> float:
    """The share of the squared length of rows in the four directions that the streams fill most."""
    few = torch.linalg.svd(streams, full_matrices=False)[2][:4]
    return ((rows @ few.T).pow(2).sum() / rows.pow(2).sum()).item()


@checker("26.6")
def check_null(attempt: Attempt) -> str:
    for seed in (0, 50):
        _is_a_null(attempt, *_errors_to_match(seed))
    return "As long as the dictionary's errors, where activations lie, and of no meaning for their token."


def _is_a_null(attempt: Attempt, x, errors, streams) -> None:
    draw = lambda n: attempt.tensor(x, errors, streams, seeded(n), shape=tuple(x.shape), axes="token, d_in")
    found = draw(1)
    drawn = found.any(1)  # two tokens drawn for a difference can be the same one, once in a while
    refuse(
        drawn.float().mean() < 0.95 or not close(found[drawn].norm(dim=1), errors[drawn].norm(dim=1), 1e-3),
        "At each token the error must be as long as the dictionary's own there: the row of `errors`.",
    )
    own = torch.cosine_similarity(found, errors)
    refuse(
        own.abs().mean() > 0.8 or own.mean().abs() > 0.3,
        "Your errors still are the dictionary's own ones, or their opposites.",
    )
    refuse(
        not torch.equal(found, draw(1)) or torch.equal(found, draw(2)),
        "Draw with `generator=generator`: another generator must give other errors, the same one the same.",
    )
    refuse(
        torch.cosine_similarity(found, x - x.mean(0)).mean() < -0.2,
        "Your errors take away part of the token's own activation, so what is lost may be the token and not "
        "what the errors point to. Draw a direction without using x.",
    )
    unit = normalize(found, dim=1)
    alike = (unit @ unit.T).abs().mean()
    refuse(alike > 0.95, "All tokens get nearly the same direction. Draw one for each token.")
    refuse(
        unit.mean(0).norm() > 0.4,
        "Your errors have much in common: the mean of the activations is in all of them. Errors that mean "
        "nothing point anywhere.",
    )
    refuse(
        _in_few(found, streams)
        < 0.7 * min(_in_few(errors, streams), _in_few(streams - streams.mean(0), streams)),
        "These directions are isotropic, or nearly: activations fill few directions, and yours hardly touch "
        "them. Where do activations differ from each other?",
    )


FEATURE, ACTIVE = 1209, 14.0


def _at_hyphens(model, sentences: list[str]) -> list[float]:
    """How active the feature is on the token with the one hyphen of each sentence."""
    sae = SparseAutoencoder.load(data_dir() / "sae" / "smollm2_layer12").to(model.W_E.device)
    rows = [model.to_tokens(sentence)[0] for sentence in sentences]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # at the end, where nobody looks back
    with torch.no_grad():
        _, cache = model.run_with_cache(padded, names_filter=sae.hook, stop_at_layer=13)
    active = sae.encode(cache[sae.hook])[..., FEATURE]
    said = [[("-" in model.tokenizer.decode([i])) for i in row.tolist()] for row in rows]
    return [
        active[n, : len(row)][torch.tensor(row, device=active.device)].max().item()
        for n, row in enumerate(said)
    ]


def _sentences(given, name: str) -> list[str]:
    """Four plain and different sentences with one hyphen each."""
    found = given.get(name) if isinstance(given, dict) else None
    if not isinstance(found, (list, tuple)) or not all(isinstance(each, str) for each in found):
        raise NotYet('Return {"should": [four sentences], "should not": [four sentences]}.')
    refuse(len(found) != 4, f'Under "{name}" there are {len(found)} sentences; four are needed.')
    words = [re.findall(r"[A-Za-z]+", each) for each in found]
    for each, its in zip(found, words, strict=True):
        refuse(len(its) < 6 or len(each) > 200, f"Write six words or more, and no novel: {each[:60]!r}.")
        dash = " (– and — are dashes.)" if re.search("[–—]", each) else ""
        refuse(each.count("-") != 1, f"Exactly one hyphen is needed in {each!r}.{dash}")
        digit = each[each.index("-") - 1 : each.index("-")].isdigit()
        refuse(
            digit != (name == "should"),
            f'Under "{name}" the hyphen must{"" if name == "should" else " not"} stand right behind a digit: '
            f"{each!r}.",
        )
    for a, b in combinations(words, 2):
        a, b = ({word.lower() for word in each} for each in (a, b))
        refuse(
            len(a & b) > 0.5 * len(a | b),
            f'Two sentences under "{name}" are nearly the same: {" ".join(sorted(a & b))}.',
        )
    return list(found)


@checker("26.7")
def check_breaking(attempt: Attempt, model) -> str:
    given = attempt()
    lists = {name: _sentences(given, name) for name in ("should", "should not")}
    for each in (*lists["should"], *lists["should not"]):
        with torch.no_grad():
            loss = model(model.to_tokens(each), return_type="loss").item()
        refuse(loss > 7, f"That does not read like English (loss {loss:.1f}): {each!r}.")
    for name, sentences in lists.items():
        found = _at_hyphens(model, sentences)
        against = [(value >= ACTIVE) == (name == "should not") for value in found]
        told = "; ".join(f"{value:.0f} in {each!r}" for value, each in zip(found, sentences, strict=True))
        refuse(
            sum(against) < 3,
            f'Under "{name}" {sum(against)} of four speak against the name; three are needed. The feature is '
            f"active on the hyphen with: {told}.",
        )
    return "The name fails your test: a hyphen behind a digit is neither needed nor enough."


def _scores(said: list[bool], truth: list[bool]) -> tuple[float, float, float]:
    """Precision, recall, and F1."""
    hits = sum(s and t for s, t in zip(said, truth, strict=True))
    precision, recall = hits / max(1, sum(said)), hits / max(1, sum(truth))
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


def _where_it_errs(earlier: list[str], said: list[bool], truth: list[bool]) -> str:
    """Which kind of hyphen a name gets wrong most often, missed or taken in vain."""
    wrong = [
        ("yes" if s else "no", "behind a digit" if before[-1].isdigit() else "behind a word")
        for before, s, t in zip(earlier, said, truth, strict=True)
        if bool(s) != t
    ]
    (answer, place), count = Counter(wrong).most_common(1)[0]
    return f"Most often ({count} of {len(wrong)} errors) it says {answer} wrongly {place}."


@checker("26.8")
def check_name(attempt: Attempt, model) -> str:
    parts = [sentence.split("-") for sentence in HIDDEN]
    said = [attempt(before, after) for before, after in parts]
    if not all(type(each) in (bool, int) and each in (0, 1) for each in said):
        raise NotYet("Return True or False for each hyphen.")
    truth = [value >= ACTIVE for value in _at_hyphens(model, HIDDEN)]
    old = _scores([before[-1].isdigit() for before, _ in parts], truth)[2]
    every = _scores([True] * len(truth), truth)[2]
    precision, recall, f1 = _scores([*map(bool, said)], truth)
    told = f"precision {precision:.2f}, recall {recall:.2f}, F1 {f1:.2f}"
    marks = f'"every hyphen" has F1 {every:.2f}, the old name {old:.2f}'
    refuse(not any(said), f"Your name never says yes, so it finds nothing ({marks}).")
    found = _where_it_errs([before for before, _ in parts], said, truth)
    refuse(f1 < 0.88, f"On unseen sentences: {told}; {marks}. At least 0.88 is needed. {found}")
    return f"On {len(HIDDEN)} unseen sentences: {told}; {marks}."


# Sentences that the notebook does not show, each with one hyphen.
HIDDEN = """\
We stayed in a 4-star hotel near the old harbour.
The match ended in a 2-2 draw after extra time.
The war of 1914-1918 changed the map of Europe.
She flew to Lisbon in an old Boeing 737-800 last week.
The B-52 bomber was built in the same factory.
He ran a 10-kilometre race in less than an hour.
My cousin has bought a three-room flat in Berlin.
They played a five-set match on the first day.
The north-east wind was very cold that winter.
The well-known singer gave a concert for free.
You will find the answer on pages 212-215 of the book.
The doctor told her to take a 30-minute walk each day.
He was born in the 1980s-era suburbs of Chicago.
The seven-day trip to Egypt was a present.
The company has a 50-person office in Vienna.
A first-class ticket costs twice as much.
The Covid-19 vaccine was ready within a year.
I need a 100-watt lamp for the kitchen.
The two-thirds majority was not reached.
The order 2023-0457 was sent to the wrong address.
A 24-hour strike stopped all the trains.
They gave us a four-page letter to sign.
The co-author of the study did not agree.
We measured temperatures of 15-20 degrees in the cave.
The team won by 3-0 against the champions.
An ex-soldier opened the small bakery.
It was a 90-day visa with no extension.
The eight-legged animal hid under a stone.
Her e-mail was sent to all of the students.
The law of 2001-02 was never used.
A ten-foot wall surrounds the garden.
The old self-service shop was closed for ever.
This 16-bit computer was sold in the eighties.
A six-month contract is better than nothing.
They live at 21-23 Market Street above the shop.
He lived there from 1990-1995 with his family.
The plane was a Boeing 747-400 from Dubai.
The Cold War of 1947-1991 divided the whole continent.
The half-hour show was fun.
The one-man band played.
They are 6-foot tall players.
It lasted 20-30 minutes.
A 50-50 chance of rain.
The part-time job pays little.
The year-long project ended.
The 2008-2009 crisis hurt.
The 1950s-style kitchen is nice.
""".splitlines()
