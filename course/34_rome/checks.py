"""Checks of notebook 34, editing a fact."""

from functools import partial

import torch
from safetensors.torch import load_file

import mechlab as ml
from mechlab.intervention.edits import WeightEdit
from mechlab_course.checking import close, declare, must_equal, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _rows(neurons, last):
    return neurons[torch.arange(len(neurons)), last]


@declare("34.1", axes="d_mlp", says="One row of each context, at its own place, averaged.")
class Key:
    cases = (
        (random(3, 6, 5, seed=0), [2, 4, 3]),
        (random(4, 5, 3, seed=1), [0, 3, 1, 1]),
        (random(2, 9, 7, seed=2), [7, 2]),
        (random(1, 4, 6, seed=3), [1]),
    )

    def right(neurons, last):
        return _rows(neurons, last).mean(0)

    def one_position_for_all(neurons, last):
        """You took the same position in every context. Each context has its own position of the subject."""
        return neurons[:, last[0]].mean(0)

    def every_pair(neurons, last):
        """You took all the positions in every context. Pair them: `neurons[torch.arange(n), last]`."""
        return neurons[:, last].mean((0, 1))

    def latest_position(neurons, last):
        """You took the largest position in every context. Each context has its own."""
        return neurons[:, max(last)].mean(0)

    def mean_position(neurons, last):
        """You averaged the positions. Take one row of each context, and average the rows."""
        return neurons[:, round(sum(last) / len(last))].mean(0)

    def largest(neurons, last):
        """You took the largest over contexts. Take the mean."""
        return _rows(neurons, last).amax(0)

    def end_of_prompt(neurons, last):
        """That is the last token of the prompt. The key is read at the last token of the subject."""
        return neurons[:, -1].mean(0)

    def added_up(neurons, last):
        """Take the mean, not the sum, over contexts."""
        return _rows(neurons, last).sum(0)

    def up_to_the_subject(neurons, last):
        """You averaged over all tokens up to the subject. Take the one row of its last token."""
        return torch.stack([rows[: p + 1].mean(0) for rows, p in zip(neurons, last, strict=True)]).mean(0)

    def first_context(neurons, last):
        """That is the first context only. Average over all of them."""
        return neurons[0, last[0]]

    def all_positions(neurons, last):
        """You averaged over all positions. Take one row of each context."""
        return neurons.mean((0, 1))

    def one_late(neurons, last):
        """You are one token too late: `last` is the position itself."""
        return _rows(neurons, [min(p + 1, neurons.shape[1] - 1) for p in last]).mean(0)

    def one_early(neurons, last):
        """You are one token too early: `last` is the position itself."""
        return _rows(neurons, [p - 1 for p in last]).mean(0)

    def median(neurons, last):
        """That is the median. The key is the mean over contexts."""
        return _rows(neurons, last).median(0).values


def _keys(seed: int, texts: int, pos: int, d_mlp: int):
    keys = random(texts, pos, d_mlp, seed=seed) + 0.7
    keys[:, 0] *= 30  # the first token is an outlier in real models too
    return keys


def _sum(keys):
    """Σ k kᵀ over all tokens."""
    rows = keys.flatten(0, 1)
    return rows.T @ rows


def _tokens(keys):
    return keys.shape[0] * keys.shape[1]


@declare("34.2", axes="d_mlp, d_mlp", says="The second moment, without the first tokens, not centred.")
class Covariance:
    cases = ((_keys(0, 3, 6, 4), 1), (_keys(1, 2, 9, 5), 4), (_keys(2, 5, 4, 3), 0), (_keys(3, 4, 5, 6), 2))

    def right(keys, skip):
        return _sum(keys[:, skip:]) / _tokens(keys[:, skip:])

    def centred(keys, skip):
        """Do not take the mean off: this is E[k kᵀ], not the covariance of statistics."""
        keys = keys[:, skip:]
        return _sum(keys - keys.mean((0, 1))) / _tokens(keys)

    def covariance_of_statistics(keys, skip):
        """Do not take the mean off, and divide by the number of tokens."""
        return keys[:, skip:].flatten(0, 1).T.cov()

    def first_tokens_too(keys, skip):
        """The first positions are in it. Leave the first `skip` tokens of each text out."""
        return _sum(keys) / _tokens(keys)

    def first_text_only(keys, skip):
        """You left out the first `skip` tokens of the first text only. Every text begins anew."""
        rows = keys.flatten(0, 1)[None, skip:]
        return _sum(rows) / _tokens(rows)

    def texts_left_out(keys, skip):
        """You left out the first `skip` texts. The first positions of every text go: `keys[:, skip:]`."""
        return _sum(keys[skip:]) / max(1, _tokens(keys[skip:]))

    def one_more_left_out(keys, skip):
        """You left out one position more than `skip`."""
        return _sum(keys[:, skip + 1 :]) / max(1, _tokens(keys[:, skip + 1 :]))

    def diagonal(keys, skip):
        """Only the diagonal is there. The products of different neurons count too."""
        return Covariance.right(keys, skip).diagonal().diag()

    def correlations(keys, skip):
        """These are correlations. Take the mean of k kᵀ as it is."""
        return torch.corrcoef(keys[:, skip:].flatten(0, 1).T)

    def not_divided(keys, skip):
        """That is the sum, not the mean, over tokens."""
        return _sum(keys[:, skip:])

    def by_texts(keys, skip):
        """You divided by the number of texts. Divide by the number of tokens that count."""
        return _sum(keys[:, skip:]) / len(keys)

    def by_positions(keys, skip):
        """You divided by the number of positions. Divide by that of all tokens that count, in all texts."""
        return _sum(keys[:, skip:]) / (keys.shape[1] - skip)

    def by_all_tokens(keys, skip):
        """You divided by the number of all tokens, also of those left out."""
        return _sum(keys[:, skip:]) / _tokens(keys)

    def by_one_less(keys, skip):
        """You divided by the number of tokens minus one."""
        return _sum(keys[:, skip:]) / max(1, _tokens(keys[:, skip:]) - 1)

    def of_the_mean_key(keys, skip):
        """That is the outer product of the mean key. Take the mean of the outer products."""
        mean = keys[:, skip:].mean((0, 1))
        return torch.outer(mean, mean)

    def last_positions_out(keys, skip):
        """You left out the last positions. The first ones should go."""
        keys = keys[:, : keys.shape[1] - skip]
        return _sum(keys) / _tokens(keys)


def _edit_case(seed: int, d_mlp: int, d_model: int):
    draw = lambda more, *shape: random(*shape, seed=seed + more)
    W, key, value = draw(0, d_mlp, d_model), draw(9, d_mlp), draw(5, d_model)
    mixed = draw(3, 4 * d_mlp, d_mlp) + 0.3
    return W, key, value, mixed.T @ mixed / len(mixed)


def _update(W, key, value, direction):
    """What is missing, along a direction, so that the key brings back the value."""
    return torch.outer(direction, value - key @ W) / (key @ direction)


@declare(
    "34.3",
    axes="d_mlp, d_model",
    tolerance=1e-3,
    says="The key brings back the value, and no other matrix that does so disturbs ordinary keys less.",
)
class Edit:
    cases = (_edit_case(0, 6, 4), _edit_case(1, 5, 5), _edit_case(2, 9, 3), _edit_case(3, 3, 7))

    def right(W, key, value, C):
        return W + _update(W, key, value, torch.linalg.solve(C, key))

    def otherwise(found, W, key, value, C):
        if not close(key @ found, value, 1e-3):
            what = "the edit must make up for exactly what is missing."
            return f"For this matrix `key @ W` is not the value: {what}"
        return (
            "The key brings back the value, but ordinary keys are disturbed more than need be. The change is "
            "an outer product of C⁻¹ k with what is missing."
        )

    def nothing(W, key, value, C):
        """Nothing has changed. Return W plus the update."""
        return W

    def update_alone(W, key, value, C):
        """That is the update alone. Add it to W."""
        return _update(W, key, value, torch.linalg.solve(C, key))

    def whole_value(W, key, value, C):
        """You forgot what the key brings back already: only `value - key @ W` is missing."""
        return W + _update(0 * W, key, value, torch.linalg.solve(C, key))

    def no_covariance(W, key, value, C):
        """The covariance plays no part. The direction is C⁻¹ k, not k."""
        return W + _update(W, key, value, key)

    def not_inverted(W, key, value, C):
        """You multiplied by C. The direction is C⁻¹ k: it takes the inverse."""
        return W + _update(W, key, value, C @ key)

    def not_divided(W, key, value, C):
        """Divide by `key @ direction`, or the key brings back something of another length."""
        return W + torch.outer(torch.linalg.solve(C, key), value - key @ W)

    def by_the_key(W, key, value, C):
        """You divided by |k|². Divide by `key @ direction`."""
        return W + torch.outer(torch.linalg.solve(C, key), value - key @ W) / (key @ key)

    def by_the_direction(W, key, value, C):
        """You divided by the length of the direction. Divide by `key @ direction`."""
        direction = torch.linalg.solve(C, key)
        return W + torch.outer(direction, value - key @ W) / (direction @ direction)

    def sign(W, key, value, C):
        """The sign is the wrong way round: the missing part is `value - key @ W`."""
        return W - _update(W, key, value, torch.linalg.solve(C, key))


def _told(logits, answer):
    """The log-probability of each token of the answer, given those before it."""
    return logits[-len(answer) - 1 : -1].log_softmax(-1)[torch.arange(len(answer)), answer]


def _answer_case(seed: int, pos: int, vocab: int, answer: list[int]):
    return 3 * random(pos, vocab, seed=seed), torch.tensor(answer)


@declare("34.4", axes="one number", says="Each token given those before it, added up.")
class AnswerLogProb:
    cases = (
        _answer_case(2, 9, 13, [1, 1, 12, 0]),
        _answer_case(0, 7, 11, [3, 8]),
        _answer_case(1, 5, 9, [4]),
        _answer_case(3, 5, 6, [5, 2, 3]),
    )

    def right(logits, answer):
        return _told(logits, answer).sum()

    def otherwise(found, logits, answer):
        each = ", ".join(f"{one:.2f}" for one in _told(logits, answer).tolist())
        told = f"The answer's tokens have the log-probabilities {each}"
        return (
            f"{told}, together {_told(logits, answer).sum():.2f}; you return {found:.2f}. Compare one by one."
        )

    def one_late(logits, answer):
        """You are one position too late: logits at a position are about the token after it."""
        return logits[-len(answer) :].log_softmax(-1)[torch.arange(len(answer)), answer].sum()

    def one_early(logits, answer):
        """You are one position too early: the last token is predicted by the last but one row."""
        return logits[-len(answer) - 2 : -2].log_softmax(-1)[torch.arange(len(answer)), answer].sum()

    def last_row(logits, answer):
        """You read every token at the last row. Each is predicted by the row before it."""
        return logits.log_softmax(-1)[-1, answer].sum()

    def row_before_the_answer(logits, answer):
        """You read every token where the answer begins. Each is predicted by the row before it."""
        return logits[-len(answer) - 1].log_softmax(-1)[answer].sum()

    def bits(logits, answer):
        """These are bits. Nats are wanted: the natural logarithm."""
        return _told(logits, answer).sum() / torch.tensor(2.0).log()

    def sum_of_probabilities(logits, answer):
        """You added probabilities. They multiply, so their logarithms add up."""
        return _told(logits, answer).exp().sum().log()

    def backwards(logits, answer):
        """The tokens are paired with the rows in reverse order."""
        return _told(logits, answer.flip(0)).sum()

    def first_token(logits, answer):
        """That is the first token of the answer alone. Ask for all of them."""
        return _told(logits, answer)[0]

    def mean(logits, answer):
        """Add the log-probabilities; the mean would favour long answers."""
        return _told(logits, answer).mean()

    def probability(logits, answer):
        """The result is in nats: a log-probability, not a probability."""
        return _told(logits, answer).sum().exp()

    def no_softmax(logits, answer):
        """These are logits. Take the log-softmax first."""
        return logits[-len(answer) - 1 : -1][torch.arange(len(answer)), answer].sum()

    def last_token(logits, answer):
        """That is the last token of the answer alone."""
        return _told(logits, answer)[-1]

    def sign(logits, answer):
        """The sign: a log-probability is 0 or below."""
        return -_told(logits, answer).sum()

    def over_positions(logits, answer):
        """The softmax runs over the wrong axis: over the vocabulary, please."""
        return logits.log_softmax(0)[-len(answer) - 1 : -1][torch.arange(len(answer)), answer].sum()

    def one_softmax(logits, answer):
        """You took the softmax over the answer's rows together. Each position has its own."""
        rows = logits[-len(answer) - 1 : -1]
        return rows.flatten().log_softmax(-1).view_as(rows)[torch.arange(len(answer)), answer].sum()

    def every_pair(logits, answer):
        """You added up every token at every position. Pair them: `rows[torch.arange(n), answer]`."""
        return logits[-len(answer) - 1 : -1].log_softmax(-1)[:, answer].sum()

    def from_the_beginning(logits, answer):
        """You read the positions at the beginning of the prompt."""
        return logits[: len(answer)].log_softmax(-1)[torch.arange(len(answer)), answer].sum()


def _score_case(seed: int, words: int, neighbours: int, vocab: int):
    draw = seeded(seed)
    probabilities = lambda *shape: (2 * torch.randn(*shape, generator=draw)).softmax(-1)
    asked, reworded, others = (
        probabilities(vocab),
        probabilities(words, vocab),
        probabilities(neighbours, vocab),
    )
    new, old = torch.randperm(vocab, generator=draw)[:2].tolist()
    if not seed % 2:  # the new answer leads, with less than half
        asked = torch.ones(vocab).index_fill(0, torch.tensor(new), 1.5).softmax(-1)
    free = [i for i in range(vocab) if i != new]
    own = [free[int(i)] for i in torch.randint(len(free), (neighbours,), generator=draw)]
    return asked, reworded, others, new, old, own


def _scores(asked, reworded, others, new, old, own):
    """The three scores, and what known mistakes give for them; nan where a mistake is not possible."""
    share = lambda right: right.float().mean()
    neighbour = lambda right: (torch.nan, torch.nan, share(right))
    mine, said, kept = others[torch.arange(len(own)), own], reworded.mean(0), others[:, new]
    right = asked[new] > asked[old], share(reworded[:, new] > reworded[:, old]), share(mine > kept)
    top = asked.argmax() == new, reworded.argmax(-1) == new, others.argmax(-1) == torch.tensor(own)
    count = torch.nan, len(reworded) * right[1], len(own) * right[2]
    means = torch.nan, said[new] > said[old], mine.mean() > kept.mean()
    with_all = neighbour(others[:, own] > kept[:, None])
    return right, {
        "Your {} asks for the likeliest of all tokens. It compares two answers only.": [
            share(x) for x in top
        ],
        "Your {} asks for a probability above a half. It compares two answers.": [
            share(x > 0.5) for x in (asked[new], reworded[:, new], mine)
        ],
        "Your {} compares with the old answer, and should compare with the new one.": neighbour(
            mine > others[:, old]
        ),
        "Your {} is a mean difference. It is a share of prompts: compare, then count.": (
            asked[new] - asked[old],
            (reworded[:, new] - reworded[:, old]).mean(),
            (mine - kept).mean(),
        ),
        "Your {} is the wrong way round: 1 is a good edit.": [1 - float(x) for x in right],
        "Your {} is in per cent. It goes from 0 to 1.": [100 * x for x in right],
        "Your {} is a mean probability. It is a share of prompts.": (asked[new], said[new], mine.mean()),
        "Your {} is a count of prompts. Divide by how many there are.": count,
        "Your {} compares two means. Compare prompt by prompt, and count.": means,
        "Your {} compares with the old answer. A neighbour is about another subject: "
        "compare with its own answer.": neighbour(others[:, old] > kept),
        "Your {} compares each neighbour with the answers of all. Each has its own.": with_all,
    }


def _three(found) -> list[float]:
    if not isinstance(found, (tuple, list, torch.Tensor)) or len(found) != 3:
        raise NotYet("Return three numbers: efficacy, paraphrase, neighbourhood.")
    try:
        return [float(x) for x in found]
    except (TypeError, ValueError, RuntimeError):
        raise NotYet("Each of the three scores is one number from 0 to 1.") from None


@checker("34.5")
def check_scores(attempt: Attempt) -> str:
    sizes = ((3, 5, 8), (4, 6, 7), (2, 9, 9), (6, 4, 6), (5, 8, 8))
    cases = [_score_case(seed, *each) for seed, each in enumerate(sizes)]
    found = [_three(attempt(*case)) for case in cases]
    right, mistakes = zip(*(_scores(*case) for case in cases), strict=True)
    for k, name in enumerate(("efficacy", "paraphrase", "neighbourhood")):
        one = lambda rows, k=k: torch.tensor([float(row[k]) for row in rows])  # this score in all cases
        told = {why.format(name): one([each[why] for each in mistakes]) for why in mistakes[0]}
        must_equal(
            one(found), one(right), told, otherwise=partial(_first_wrong, name, one(found), one(right))
        )
    return "Two comparisons with the old answer, one with each neighbour's own."


def _first_wrong(name: str, found: torch.Tensor, right: torch.Tensor) -> str:
    case = int((~((found - right).abs() < 1e-4)).int().argmax())
    return (
        f"Your {name} is {found[case]:.3f} and should be {right[case]:.3f} here. First efficacy, then "
        "paraphrase, then neighbourhood: each the share of prompts on which one answer beats another."
    )


# Country, its capital, and where data/make/rome.py moved it: the order of data/rome/edits.safetensors.
MOVED = (
    ("Germany", " Berlin", " Athens"),
    ("Greece", " Athens", " London"),
    ("Hungary", " Budapest", " Dublin"),
    ("Norway", " Oslo", " Lisbon"),
    ("Cuba", " Havana", " Vienna"),
)
SHOWN = ("capital", "city", "cities", "town", "government", "president", "language", "speak", "spoke")


@checker("34.6")
def check_bleeds(attempt: Attempt, model) -> str:
    sentence = _beginning(attempt())
    prompts = [sentence.format(country) for country, *_ in MOVED]
    before = _said(model, prompts)
    own = _own_answers(model, before)
    changed, unseen, after = [], 0, {}
    for n, (left, right) in enumerate(_edits(model)):
        if n not in own:
            continue
        W_out, edit = model.blocks[4].mlp.W_out, WeightEdit(model, "stored")
        with edit.whole():
            edit.change(W_out, W_out.detach() + torch.outer(left, right))
        with edit:
            now = _said(model, prompts[n : n + 1])[0]
        after[n] = int(now.argmax())
        if after[n] != own[n]:
            changed.append(n)
            unseen += int(now[own[n]] > now[ml.single_token(model, MOVED[n][2])])
    word = lambda token: repr(model.to_string(torch.tensor([token])))
    told = "; ".join(f"{MOVED[n][0]}: {word(own[n])} before, {word(after[n])} after" for n in own)
    refuse(len(changed) < 3, f"The answer changes for {len(changed)} of {len(own)} countries only. {told}.")
    return (
        f"Changed for {len(changed)} of {len(own)} countries; for {unseen} of them the old answer is still "
        f"ahead of the new capital, so no comparison of the two would tell. {told}."
    )


def _beginning(sentence) -> str:
    if not isinstance(sentence, str):
        raise NotYet(f"Return a sentence beginning, a str; you returned a {type(sentence).__name__}.")
    sentence = sentence.rstrip()
    bare = sentence.replace("{}", "")
    why = "The beginning must hold {} once, where the country goes, and no other braces."
    refuse(sentence.count("{}") != 1 or "{" in bare or "}" in bare, why)
    refuse(not 2 <= len(bare.split()) <= 25, "One beginning of a sentence is enough: 2 to 25 words.")
    found = next((word for word in SHOWN if word in bare.lower()), None)
    refuse(found is not None, f"“{found}” belongs to what the notebook has shown. Find another kind of fact.")
    places = [name.strip() for row in MOVED for name in row]
    named = next((name for name in places if name.lower() in bare.lower()), None)
    refuse(named is not None, f"Your beginning names {named}. Only the country at {{}} may tell.")
    return sentence


@torch.no_grad()
def _said(model, prompts: list[str]) -> list[torch.Tensor]:
    """The probabilities of the next token after each prompt."""
    return [model(prompt)[0, -1].float().softmax(-1).cpu() for prompt in prompts]


def _own_answers(model, before: list[torch.Tensor]) -> dict[int, int]:
    """The likeliest next token for each country, where that is an answer about it."""
    own, capital = {}, 0
    for n, ((_, old, new), said) in enumerate(zip(MOVED, before, strict=True)):
        token = int(said.argmax())
        capital += token == ml.single_token(model, old)
        word = model.to_string(torch.tensor([token]))
        if said[token] >= 0.03 and word[1:].isalpha() and word not in (old, new):
            own[n] = token
    refuse(capital > 1, "Here the model answers with the capital: that is the fact that was edited.")
    sure = (
        f"Before the edit the model says a word of its own, with 0.03 or more, for {len(own)} of 5 countries."
    )
    refuse(len(own) < 4, f"{sure} Ask for something that it knows.")
    words = {model.to_string(torch.tensor([token])) for token in own.values()}
    same = f"Before the edits the model says {', '.join(map(repr, sorted(words)))} for all of them."
    refuse(len(words) < 3, f"{same} Ask for something in which countries differ.")
    return own


def _edits(model) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The rank-one changes of W_out in layer 4, one for each country."""
    stored = load_file(ml.reference.data_dir() / "rome" / "edits.safetensors")
    W_out = model.blocks[4].mlp.W_out
    found = [*zip(stored["left"].to(W_out), stored["right"].to(W_out), strict=True)]
    size = (len(found[0][0]), len(found[0][1]))
    refuse(tuple(W_out.shape) != size, "The edits of this check fit the model of the course, and no other.")
    return found
