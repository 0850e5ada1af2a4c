"""Checks of notebook 23, attention patterns."""

import torch

from mechlab.loading.models import tiny
from mechlab_course.checking import close, is_like, must_equal, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _patterns(batch: int, heads: int, pos: int, seed: int) -> torch.Tensor:
    future = torch.ones(pos, pos, dtype=torch.bool).triu(1)
    return random(batch, heads, pos, pos, seed=seed).masked_fill(future, -torch.inf).softmax(-1)


@checker("23.1")
def check_previous(attempt: Attempt) -> str:
    for batch, heads, pos, seed in ((2, 3, 6, 0), (1, 4, 9, 1)):
        pattern = _patterns(batch, heads, pos, seed)
        line = pattern.diagonal(-1, 2, 3)
        expected = line.mean((0, 2))
        found = attempt(pattern)
        if isinstance(found, torch.Tensor) and found.ndim == 0:
            raise NotYet("You averaged over the heads too. Keep them apart: one number for each head.")
        found = attempt.tensor(pattern, shape=(heads,), axes="head")
        mistakes = {
            "This is a head that looks ahead: rows are queries, columns keys. The token before lies below the "
            "diagonal: offset −1.": pattern.diagonal(1, 2, 3).mean((0, 2)),
            "You divide by all positions, or count position 0. Leave it out: it has no token before it.": expected
            * (pos - 1)
            / pos,
            "This is how much each position looks at itself. One below the diagonal is the token before.": pattern.diagonal(
                0, 2, 3
            ).mean((0, 2)),
            "You took the sum over the positions. Take the mean.": line.sum(2).mean(0),
            "You took the sum over the texts. Take the mean.": line.mean(2).sum(0),
            "This is the first text only. Take the mean over all.": line[0].mean(-1),
            "This is attention two tokens back.": pattern.diagonal(-2, 2, 3).mean((0, 2)),
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    model = tiny("gqa")
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.arange(1, 9).reshape(1, 8))
    expected = cache["pattern", 1].diagonal(-1, 2, 3).mean((0, 2))
    if not close(attempt.tensor(cache["pattern", 1], shape=(4,), axes="head"), expected):
        raise NotYet("On the patterns of a model the numbers differ.")
    return "Right on random patterns and on a model's."


@checker("23.2")
def check_induction(attempt: Attempt) -> str:
    for batch, heads, length, seed in ((2, 3, 4, 0), (3, 2, 7, 1)):
        pattern = _patterns(batch, heads, 2 * length + 1, seed)
        queries = torch.arange(length + 1, 2 * length + 1)
        at = lambda keys, pattern=pattern, queries=queries: pattern[:, :, queries, keys].mean((0, 2))
        expected = at(queries - length + 1)
        found = attempt.tensor(pattern, length, shape=(heads,), axes="head")
        whole = pattern.diagonal(1 - length, 2, 3)
        is_like(
            found,
            {
                "You look at the earlier copy itself: that is a duplicate-token head. Wanted is the token that came after "
                "it, one further on.": at(queries - length),
                "You look at the token before the earlier copy. Wanted is the one after it.": at(
                    queries - length - 1
                ),
                "The line is right, but it starts too early: you also count positions before the second half.": whole.mean(
                    (0, 2)
                ),
                "The line is right, but you divide by the positions of the first half too. Average over the second half "
                "only.": expected * length / (2 * length + 1),
                "You took a sum over the positions. Take the mean.": expected * length,
                "Position 0 is the extra first token: the second half begins at `length + 1`.": pattern[
                    :, :, queries - 1, queries - length
                ].mean((0, 2)),
                "This is the first text only. Take the mean over all.": pattern[
                    0, :, queries, queries - length + 1
                ].mean(-1),
                "You took the sum over the texts. Take the mean.": expected * batch,
                "You leave out the last position of the second half.": pattern[
                    :, :, queries[:-1], queries[:-1] - length + 1
                ].mean((0, 2)),
                "You leave out the first position of the second half.": pattern[
                    :, :, queries[1:], queries[1:] - length + 1
                ].mean((0, 2)),
            },
        )
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    perfect = torch.zeros(1, 2, 11, 11)
    second = torch.arange(6, 11)
    perfect[0, 0, second, second - 4] = 1  # an induction head, and a duplicate-token head
    perfect[0, 1, second, second - 5] = 1
    found = attempt.tensor(perfect, 5, shape=(2,), axes="head")
    if not close(found, torch.tensor([1.0, 0.0])):
        raise NotYet(
            f"A perfect induction head must score 1 and a duplicate-token head 0; yours score {found.tolist()}."
        )
    return (
        "A perfect induction head scores 1, a duplicate-token head 0, and random patterns what they should."
    )


@checker("23.3")
def check_matching(attempt: Attempt) -> str:
    for tokens, d, noise, seed in ((61, 8, 0.8, 4), (83, 7, 1.0, 1), (53, 6, 0.6, 2), (6, 6, 0.0, 3)):
        queries = random(tokens, d, seed=seed)
        length = 0.3 + random(tokens, 1, seed=seed + 20).abs()
        keys = (queries + noise * random(tokens, d, seed=seed + 10)) * (length if noise else 1)
        if not noise:
            queries, keys = torch.eye(6), torch.eye(6)
        own, scores = torch.arange(tokens), queries @ keys.T
        share = lambda best, own=own: (best == own).float().mean().item()
        expected = share(scores.argmax(1))
        found = attempt(queries, keys)
        try:
            found = float(found)
        except (TypeError, ValueError, RuntimeError):
            raise NotYet("Return one number, the share of the tokens.") from None
        unit = torch.nn.functional.normalize(keys, dim=1)
        if abs(found - expected) < 1e-5:
            continue
        for value, why in (
            (share(scores.argmax(0)), "You ask for each key which query suits it best. Ask for each query which key: `argmax(1)`."),
            (share((queries @ unit.T).argmax(1)), "You scaled the keys to length 1. In attention a longer key gets more: use the inner product."),
            (scores.softmax(-1).diagonal().mean().item(), "You took the mean of a softmax. Count how often the own key is the best."),
            (expected * tokens, "You counted the tokens. Divide by their number."),
            (1 - expected, "You counted the tokens whose own key is not the best."),
        ):  # fmt: skip
            if abs(found - value) < 1e-5:
                raise NotYet(why)
        raise NotYet(f"With {tokens} tokens the share should be {expected:.3f}, and yours is {found:.3f}.")
    return "Right on three random sets, and 1 where every key suits its query."


@checker("23.4")
def check_shares(attempt: Attempt) -> str:
    for count, heads, kv, d, d_head, seed in (
        (61, 6, 2, 20, 12, 0),
        (47, 4, 1, 16, 9, 1),
        (53, 9, 3, 18, 10, 2),
        (37, 3, 3, 14, 8, 3),
    ):
        tokens, mix = random(count, d, seed=seed), torch.linalg.qr(random(d, d, seed=seed + 10)).Q
        written = tokens @ mix + 0.3 * random(count, d, seed=seed + 20)  # the same tokens, in another form
        W_K = random(kv, d, d_head, seed=seed + 30)
        wide = W_K.repeat_interleave(heads // kv, 0)
        spoilt = torch.linspace(0, 1.5, heads)[:, None, None]  # heads match less and less
        W_Q = mix @ wide + spoilt * random(heads, d, d_head, seed=seed + 40)
        found = attempt(tokens, written, W_Q, W_K)
        if isinstance(found, torch.Tensor) and found.ndim == 0:
            raise NotYet("You averaged over the heads too. Keep them apart: one number for each head.")
        if isinstance(found, torch.Tensor) and found.shape == (kv,) != (heads,):
            raise NotYet("That is one number for each key head. Every query head has queries of its own.")
        found = attempt.tensor(tokens, written, W_Q, W_K, shape=(heads,), axes="head")
        own = torch.arange(count)
        fits = lambda x, W, tokens=tokens, W_Q=W_Q: (tokens @ W_Q) @ (x @ W).mT
        share = lambda best, own=own: (best == own).float().mean(-1)
        scores = fits(written, wide)
        expected = share(scores.argmax(-1))
        unit = torch.nn.functional.normalize(written @ wide, dim=-1)
        mistakes = {
            "You repeated the key heads in turn (0, 1, 0, 1, ...). It is neighbouring heads that share one: 0, 0, 0, 1, 1, 1 "
            "(`repeat_interleave`).": share(fits(written, W_K.repeat(heads // kv, 1, 1)).argmax(-1)),
            "You made the keys from the tokens themselves. Make them from `written`, what the earlier head writes.": share(
                fits(tokens, wide).argmax(-1)
            ),
            "You ask for each key which query suits it best. Ask for each query which key: the last axis.": share(
                scores.argmax(-2)
            ),
            "You made the queries from `written` and the keys from `tokens`. It is the other way round.": share(
                ((written @ W_Q) @ (tokens @ wide).mT).argmax(-1)
            ),
            "All heads use the first key head.": share(
                fits(written, W_K[:1].expand(heads, -1, -1)).argmax(-1)
            ),
            "You scaled the keys to length 1. In attention a longer key gets more: use the inner product.": share(
                (tokens @ W_Q @ unit.mT).argmax(-1)
            ),
            "You took the mean of a softmax. Count how often the own key is the best.": scores.softmax(-1)
            .diagonal(dim1=-2, dim2=-1)
            .mean(-1),
            "You counted the tokens. Divide by their number.": expected * count,
            "You counted the tokens whose own key is not the best.": 1 - expected,
        }
        must_equal(found, expected, mistakes)
    return "Right for four layers with different numbers of heads and key heads."


@checker("23.5")
def check_copying(attempt: Attempt) -> str:
    for tokens, d, head, vocab, k, seed in (
        (83, 12, 6, 160, 5, 3),
        (61, 8, 4, 140, 3, 1),
        (53, 6, 3, 130, 4, 0),
    ):
        W_U = random(d, vocab, seed=seed)
        ids = torch.randperm(vocab, generator=seeded(seed))[:tokens]
        streams = W_U[:, ids].T + 1.2 * random(tokens, d, seed=seed + 10)
        W_V = random(d, head, seed=seed + 20)
        W_O = W_V.T + 0.2 * random(head, d, seed=seed + 30)
        logits = streams @ W_V @ W_O @ W_U
        best = logits.topk(k).indices
        share = lambda hit: hit.float().mean().item()
        expected = share((best == ids[:, None]).any(1))
        found = attempt(streams, W_V, W_O, W_U, ids, k)
        try:
            found = float(found)
        except (TypeError, ValueError, RuntimeError):
            raise NotYet("Return one number, the share of the tokens.") from None
        if abs(found - expected) < 1e-5:
            continue
        rows = torch.arange(tokens)[:, None]
        for value, why in (
            (share(((streams @ W_U).topk(k).indices == ids[:, None]).any(1)), "This never goes through the head: times W_V, then W_O, then W_U."),
            (share((best == rows).any(1)), "You compare with row numbers. The token ids are in `ids`."),
            (share(torch.isin(best, ids).any(1)), "You count anybody's token. Each row must find its own: `best == ids[:, None]`."),
            (share(logits.argmax(-1) == ids), "You ask for the very first. Among the k largest is enough."),
            (share(((-logits).topk(k).indices == ids[:, None]).any(1)), "These are the k smallest logits."),
            (expected * tokens, "You counted the tokens. Divide by their number."),
            (share(best == ids[:, None]), "You divide by all k places. A token counts once if one of its k places is right: `any(1)`."),
        ):  # fmt: skip
            if abs(found - value) < 1e-5:
                raise NotYet(why)
        raise NotYet(
            f"With {tokens} tokens and k = {k} the share should be {expected:.3f}, and yours is {found:.3f}."
        )
    scale = 3.0  # a norm divides all logits of a token by one number
    again = attempt(scale * streams, W_V, W_O, W_U, ids, k)
    if abs(float(again) - expected) > 1e-5:
        raise NotYet("Streams three times as long must give the same share: the order of the logits stays.")
    return "Right on three random heads, and the same when all streams are three times as long."
