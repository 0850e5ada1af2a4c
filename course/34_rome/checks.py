"""Checks of notebook 34, editing a fact."""

import torch

from mechlab_course.checking import close, is_like, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker
from mechlab_course.questions import Quiz

QUIZZES = {
    "34.a": Quiz(
        "c",
        {
            "a": "The edit works in every layer that was tried, so that it works here says nothing about this layer.",
            "b": "Tracing shows where a state matters when the subject is noisy. Edits work just as well where it is next to nothing.",
            "c": "Yes: success is nearly the same in all layers. What the layer changes is what else the edit touches.",
        },
    ),
}


@checker("34.1")
def check_key(attempt: Attempt) -> str:
    for seed, (contexts, pos, d), last in (
        (0, (3, 6, 5), [2, 4, 3]),
        (1, (4, 5, 3), [0, 3, 1, 1]),
        (2, (2, 9, 7), [7, 2]),
        (3, (1, 4, 6), [1]),
    ):
        neurons = random(contexts, pos, d, seed=seed)
        rows = torch.stack([neurons[i, p] for i, p in enumerate(last)])
        expected = rows.mean(0)
        found = attempt.tensor(neurons, list(last), shape=(d,), axes="d_mlp")
        mistakes = {
            "You took the same position in every context. Each context has its own position of the subject.": neurons[
                :, last[0]
            ].mean(0),
            "That is the last token of the prompt. The key is read at the last token of the subject.": neurons[
                :, -1
            ].mean(0),
            "Take the mean, not the sum, over contexts.": rows.sum(0),
            "You averaged over all tokens up to the subject. Take the one row of its last token.": torch.stack(
                [neurons[i, : p + 1].mean(0) for i, p in enumerate(last)]
            ).mean(0),
            "That is the first context only. Average over all of them.": rows[0],
            "You averaged over all positions. Take one row of each context.": neurons.mean((0, 1)),
            "You are one token too late: `last` is the position itself.": torch.stack(
                [neurons[i, min(p + 1, pos - 1)] for i, p in enumerate(last)]
            ).mean(0),
            "You are one token too early: `last` is the position itself.": torch.stack(
                [neurons[i, p - 1] for i, p in enumerate(last)]
            ).mean(0),
            "That is the median. The key is the mean over contexts.": rows.median(0).values,
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "One row of each context, at its own place, averaged."


@checker("34.2")
def check_covariance(attempt: Attempt) -> str:
    for seed, (texts, pos, d), skip in (
        (0, (3, 6, 4), 1),
        (1, (2, 9, 5), 4),
        (2, (5, 4, 3), 0),
        (3, (4, 5, 6), 2),
    ):
        keys = random(texts, pos, d, seed=seed) + 0.7
        keys[:, 0] *= 30  # the first token is an outlier in real models too
        rows, every = keys[:, skip:].flatten(0, 1), keys.flatten(0, 1)
        moment = lambda x: x.T @ x / len(x)
        expected, centred = moment(rows), rows - rows.mean(0)
        found = attempt.tensor(keys, skip, shape=(d, d), axes="d_mlp, d_mlp")
        mistakes = {
            "Do not take the mean off: this is E[k kᵀ], not the covariance of statistics.": moment(centred),
            "Do not take the mean off, and divide by the number of tokens.": centred.T
            @ centred
            / (len(rows) - 1),
            "The first positions are in it. Leave the first `skip` tokens of each text out.": moment(every),
            "You left out the first `skip` tokens of the first text only. Every text begins anew.": moment(
                every[skip:]
            ),
            "That is the sum, not the mean, over tokens.": rows.T @ rows,
            "You divided by the number of texts. Divide by the number of tokens that count.": rows.T
            @ rows
            / texts,
            "You divided by the number of positions. Divide by that of all tokens that count, in all texts.": rows.T
            @ rows
            / (pos - skip),
            "You divided by the number of all tokens, also of those left out.": rows.T @ rows / len(every),
            "You divided by the number of tokens minus one.": rows.T @ rows / max(1, len(rows) - 1),
            "That is the outer product of the mean key. Take the mean of the outer products.": torch.outer(
                rows.mean(0), rows.mean(0)
            ),
            "You left out the last positions. The first ones should go.": moment(
                keys[:, : pos - skip].flatten(0, 1)
            ),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "The second moment, without the first tokens, not centred."


@checker("34.3")
def check_update(attempt: Attempt) -> str:
    for seed, (d_mlp, d_model) in ((0, (6, 4)), (1, (5, 5)), (2, (9, 3)), (3, (3, 7))):
        W, key, value = (
            random(d_mlp, d_model, seed=seed),
            random(d_mlp, seed=seed + 9),
            random(d_model, seed=seed + 5),
        )
        mixed = random(4 * d_mlp, d_mlp, seed=seed + 3) + 0.3
        C = mixed.T @ mixed / len(mixed)
        direction, missing = torch.linalg.solve(C, key), value - key @ W
        scale = key @ direction
        expected = W + torch.outer(direction, missing) / scale
        found = attempt.tensor(W, key, value, C, shape=(d_mlp, d_model), axes="d_mlp, d_model")
        wrong = C @ key
        mistakes = {
            "Nothing has changed. Return W plus the update.": W,
            "That is the update alone. Add it to W.": torch.outer(direction, missing) / scale,
            "You forgot what the key brings back already: only `value - key @ W` is missing.": W
            + torch.outer(direction, value) / scale,
            "The covariance plays no part. The direction is C⁻¹ k, not k.": W
            + torch.outer(key, missing) / (key @ key),
            "You multiplied by C. The direction is C⁻¹ k: it takes the inverse.": W
            + torch.outer(wrong, missing) / (key @ wrong),
            "Divide by `key @ direction`, or the key brings back something of another length.": W
            + torch.outer(direction, missing),
            "You divided by |k|². Divide by `key @ direction`.": W
            + torch.outer(direction, missing) / (key @ key),
            "You divided by the length of the direction. Divide by `key @ direction`.": W
            + torch.outer(direction, missing) / (direction @ direction),
            "The sign is the wrong way round: the missing part is `value - key @ W`.": W
            - torch.outer(direction, missing) / scale,
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected, 1e-3)})
        if not close(key @ found, value, 1e-3):
            raise NotYet(
                "For this matrix `key @ W` is not the value: the edit must make up for exactly what is missing."
            )
        if not close(found, expected, 1e-3):
            raise NotYet(
                "The key brings back the value, but ordinary keys are disturbed more than need be. The change is an outer "
                "product of C⁻¹ k with what is missing."
            )
    return "The key brings back the value, and no other matrix that does so disturbs ordinary keys less."


@checker("34.4")
def check_answer(attempt: Attempt) -> str:
    for seed, pos, vocab, answer in (
        (2, 9, 13, [1, 1, 12, 0]),
        (0, 7, 11, [3, 8]),
        (1, 5, 9, [4]),
        (3, 4, 6, [5, 2, 3]),
    ):
        logits, ids = 3 * random(pos, vocab, seed=seed), torch.tensor(answer)
        n, each = len(answer), torch.arange(len(answer))
        rows = logits.log_softmax(-1)
        told = rows[-n - 1 : -1][each, ids]
        expected = told.sum()
        found = attempt.tensor(logits, ids, shape=(), axes="one number")
        mistakes = {
            "You are one position too late: logits at a position are about the token after it.": rows[-n:][
                each, ids
            ].sum(),
            "That is the first token of the answer alone. Ask for all of them.": told[0],
            "Add the log-probabilities; the mean would favour long answers.": told.mean(),
            "The result is in nats: a log-probability, not a probability.": told.sum().exp(),
            "These are logits. Take the log-softmax first.": logits[-n - 1 : -1][each, ids].sum(),
            "That is the last token of the answer alone.": told[-1],
            "The sign: a log-probability is 0 or below.": -told.sum(),
            "The softmax runs over the wrong axis: over the vocabulary, please.": logits.log_softmax(0)[
                -n - 1 : -1
            ][each, ids].sum(),
            "You took the softmax over the answer's rows together. Each position has its own.": (
                logits[-n - 1 : -1].flatten().log_softmax(-1).view(n, vocab)[each, ids].sum()
            ),
            "You added up every token at every position. Pair them: `rows[torch.arange(n), answer]`.": rows[
                -n - 1 : -1
            ][:, ids].sum(),
            "You read the positions at the beginning of the prompt.": rows[:n][each, ids].sum(),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "Each token given those before it, added up."


@checker("34.5")
def check_scores(attempt: Attempt) -> str:
    names = ("efficacy", "paraphrase", "neighbourhood")
    share = lambda right: right.float().mean().item()
    rows = []  # one a case: what was found, what was expected, and what known mistakes give
    for seed, (words, neighbours, vocab) in enumerate(
        ((3, 5, 8), (4, 6, 7), (2, 9, 9), (6, 4, 6), (5, 8, 8))
    ):
        draw = seeded(seed)
        asked, reworded, others = (
            (2 * torch.randn(*shape, generator=draw)).softmax(-1)
            for shape in ((vocab,), (words, vocab), (neighbours, vocab))
        )
        new, old = torch.randperm(vocab, generator=draw)[:2].tolist()
        free = [i for i in range(vocab) if i != new]
        own = [free[int(i)] for i in torch.randint(len(free), (neighbours,), generator=draw)]
        found = attempt(asked, reworded, others, new, old, list(own))
        if not isinstance(found, (tuple, list, torch.Tensor)) or len(found) != 3:
            raise NotYet("Return three numbers: efficacy, paraphrase, neighbourhood.")
        try:
            found = [float(x) for x in found]
        except (TypeError, ValueError, RuntimeError):
            raise NotYet("Each of the three scores is one number from 0 to 1.") from None
        mine = others[torch.arange(neighbours), own]
        better, kept = reworded[:, new] > reworded[:, old], mine > others[:, new]
        right = [float(asked[new] > asked[old]), share(better), share(kept)]
        ours = torch.tensor(own)
        mistakes = {
            "Your {} asks for the likeliest of all tokens. It compares two answers only.": (
                float(asked.argmax() == new), share(reworded.argmax(-1) == new), share(others.argmax(-1) == ours),
            ),
            "Your {} is the wrong way round: 1 is a good edit.": [1 - x for x in right],
            "Your {} is in per cent. It goes from 0 to 1.": [100 * x for x in right],
            "Your {} is a mean probability. It is a share of prompts.": (asked[new], reworded[:, new].mean(), mine.mean()),
            "Your {} is a count of prompts. Divide by how many there are.": (torch.nan, words * right[1], neighbours * right[2]),
            "Your {} compares two means. Compare prompt by prompt, and count.": (
                torch.nan, reworded[:, new].mean() > reworded[:, old].mean(), mine.mean() > others[:, new].mean(),
            ),
            "Your {} compares with the old answer. A neighbour is about another subject: compare with its own answer.": (
                torch.nan, torch.nan, share(others[:, old] > others[:, new]),
            ),
            "Your {} compares each neighbour with the answers of all. Each has its own.": (
                torch.nan, torch.nan, share(others[:, own] > others[:, new, None]),
            ),
        }  # fmt: skip
        rows.append((found, right, mistakes))
    same = lambda a, b: abs(a - float(b)) < 1e-4
    for k, name in enumerate(names):
        off = [(found[k], right[k]) for found, right, _ in rows if not same(found[k], right[k])]
        for why in rows[0][2] if off else ():
            if all(same(found[k], mistakes[why][k]) for found, _, mistakes in rows):
                raise NotYet(why.format(name))
        if off:
            raise NotYet(f"Your {name} is {off[0][0]:.3f} and should be {off[0][1]:.3f} here.")
    return "Two comparisons with the old answer, one with each neighbour's own."
