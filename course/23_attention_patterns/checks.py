"""Checks of notebook 23, attention patterns."""

import torch
from torch.nn.functional import normalize

from mechlab.loading.models import tiny
from mechlab_course.checking import close, declare, must_equal, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker, find_checker

HEADS_APART = "You averaged over the heads too. Keep them apart: one number for each head."


def _patterns(batch: int, heads: int, pos: int, seed: int) -> torch.Tensor:
    future = torch.ones(pos, pos, dtype=torch.bool).triu(1)
    return random(batch, heads, pos, pos, seed=seed).masked_fill(future, -torch.inf).softmax(-1)


def _shape(found) -> tuple | None:
    """The shape of a tensor; None of anything else."""
    return tuple(found.shape) if isinstance(found, torch.Tensor) else None


@declare("23.1", axes="head")
class PreviousToken:
    cases = ((_patterns(2, 3, 6, 0),), (_patterns(1, 4, 9, 1),))

    def right(pattern):
        return pattern.diagonal(-1, 2, 3).mean((0, 2))

    def looks_ahead(pattern):
        """This is a head that looks ahead: rows are queries, columns keys. The token before lies below the
        diagonal: offset −1."""
        return pattern.diagonal(1, 2, 3).mean((0, 2))

    def all_positions(pattern):
        """You divide by all positions, or count position 0. Leave it out: it has no token before it."""
        return pattern.diagonal(-1, 2, 3).sum(2).mean(0) / pattern.shape[2]

    def itself(pattern):
        """This is how much each position looks at itself. One below the diagonal is the token before."""
        return pattern.diagonal(0, 2, 3).mean((0, 2))

    def sum_of_positions(pattern):
        """You took the sum over the positions. Take the mean."""
        return pattern.diagonal(-1, 2, 3).sum(2).mean(0)

    def sum_of_texts(pattern):
        """You took the sum over the texts. Take the mean."""
        return pattern.diagonal(-1, 2, 3).mean(2).sum(0)

    def first_text(pattern):
        """This is the first text only. Take the mean over all."""
        return PreviousToken.right(pattern[:1])

    def two_back(pattern):
        """This is attention two tokens back."""
        return pattern.diagonal(-2, 2, 3).mean((0, 2))

    def further(attempt):
        with torch.no_grad():
            _, cache = tiny("gqa").run_with_cache(torch.arange(1, 9).reshape(1, 8))
        found = attempt.tensor(cache["pattern", 1], shape=(4,), axes="head")
        right = close(found, PreviousToken.right(cache["pattern", 1]))
        refuse(not right, "On the patterns of a model the numbers differ.")
        return "Right on random patterns and on a model's."


declared_previous = find_checker("23.1")


@checker("23.1")
def check_previous(attempt: Attempt) -> str:
    refuse(_shape(attempt(*PreviousToken.cases[0])) == (), HEADS_APART)
    return declared_previous(attempt)


def _second_half(pattern, length: int, back: int, first: int = 1, last: int = 0):
    """Attention of the queries of the second half, so many tokens back: [batch, head, query]."""
    queries = torch.arange(length + first, 2 * length + 1 + last)
    return pattern[:, :, queries, queries - back]


@declare("23.2", axes="head")
class Induction:
    cases = ((_patterns(2, 3, 9, 0), 4), (_patterns(3, 2, 15, 1), 7))

    def right(pattern, length):
        return _second_half(pattern, length, length - 1).mean((0, 2))

    def duplicate(pattern, length):
        """You look at the earlier copy itself: that is a duplicate-token head. Wanted is the token that
        came after it, one further on."""
        return _second_half(pattern, length, length).mean((0, 2))

    def token_before(pattern, length):
        """You look at the token before the earlier copy. Wanted is the one after it."""
        return _second_half(pattern, length, length + 1).mean((0, 2))

    def whole_line(pattern, length):
        """The line is right, but it starts too early: you also count positions before the second half."""
        return pattern.diagonal(1 - length, 2, 3).mean((0, 2))

    def all_positions(pattern, length):
        """The line is right, but you divide by the positions of the first half too. Average over the
        second half only."""
        return _second_half(pattern, length, length - 1).sum(2).mean(0) / pattern.shape[2]

    def sum_of_positions(pattern, length):
        """You took a sum over the positions. Take the mean."""
        return _second_half(pattern, length, length - 1).sum(2).mean(0)

    def one_early(pattern, length):
        """Position 0 is the extra first token: the second half begins at `length + 1`."""
        return _second_half(pattern, length, length - 1, first=0, last=-1).mean((0, 2))

    def first_text(pattern, length):
        """This is the first text only. Take the mean over all."""
        return Induction.right(pattern[:1], length)

    def sum_of_texts(pattern, length):
        """You took the sum over the texts. Take the mean."""
        return _second_half(pattern, length, length - 1).mean(2).sum(0)

    def without_last(pattern, length):
        """You leave out the last position of the second half."""
        return _second_half(pattern, length, length - 1, last=-1).mean((0, 2))

    def without_first(pattern, length):
        """You leave out the first position of the second half."""
        return _second_half(pattern, length, length - 1, first=2).mean((0, 2))

    def further(attempt):
        perfect, second = torch.zeros(1, 2, 11, 11), torch.arange(6, 11)
        perfect[0, 0, second, second - 4] = 1  # an induction head, and a duplicate-token head
        perfect[0, 1, second, second - 5] = 1
        found = attempt.tensor(perfect, 5, shape=(2,), axes="head")
        why = "A perfect induction head must score 1 and a duplicate-token head 0; yours score"
        refuse(not close(found, torch.tensor([1.0, 0.0])), f"{why} {found.tolist()}.")
        scores = "A perfect induction head scores 1, a duplicate-token head 0"
        return f"{scores}, and random patterns what they should."


def _one_share(found) -> torch.Tensor:
    """One number of whatever kind, as a tensor; else `NotYet`."""
    try:
        return torch.tensor(float(found))
    except (TypeError, ValueError, RuntimeError):
        raise NotYet("Return one number, the share of the tokens.") from None


def _own_best(scores, axis: int = -1):
    """The share of tokens whose own key is the best (with axis -2: whose own query); [(head), query, key]."""
    return (scores.argmax(axis) == torch.arange(scores.shape[-1])).float().mean(-1)


def _own_softmax(scores):
    return scores.softmax(-1).diagonal(dim1=-2, dim2=-1).mean(-1)


def _queries_and_keys():
    for tokens, d, noise, seed in ((61, 8, 0.8, 4), (83, 7, 1.0, 1), (53, 6, 0.6, 2)):
        queries, length = random(tokens, d, seed=seed), 0.3 + random(tokens, 1, seed=seed + 20).abs()
        yield queries, (queries + noise * random(tokens, d, seed=seed + 10)) * length
    yield torch.eye(6), torch.eye(6)


@checker("23.3")
def check_matching(attempt: Attempt) -> str:
    for queries, keys in _queries_and_keys():
        found, tokens, scores = _one_share(attempt(queries, keys)), len(keys), queries @ keys.T
        expected = _own_best(scores)
        mistakes = {
            "You ask for each key which query suits it best. "
            "Ask for each query which key: `argmax(1)`.": _own_best(scores, -2),
            "You scaled the keys to length 1. "
            "In attention a longer key gets more: use the inner product.": _own_best(
                queries @ normalize(keys).T
            ),
            "You took the mean of a softmax. Count how often the own key is the best.": _own_softmax(scores),
            "You counted the tokens. Divide by their number.": expected * tokens,
            "You counted the tokens whose own key is not the best.": 1 - expected,
        }
        why = f"With {tokens} tokens the share should be {expected:.3f}, and yours is {found:.3f}."
        must_equal(found, expected, mistakes, 1e-5, lambda why=why: why)
    return "Right on three random sets, and 1 where every key suits its query."


def _layer(count: int, heads: int, kv: int, d: int, d_head: int, seed: int):
    """Tokens, the same tokens in another form, and heads that match less and less."""
    tokens, mix = random(count, d, seed=seed), torch.linalg.qr(random(d, d, seed=seed + 10)).Q
    W_K = random(kv, d, d_head, seed=seed + 30)
    spoilt = torch.linspace(0, 1.5, heads)[:, None, None] * random(heads, d, d_head, seed=seed + 40)
    W_Q = mix @ W_K.repeat_interleave(heads // kv, 0) + spoilt
    return tokens, tokens @ mix + 0.3 * random(count, d, seed=seed + 20), W_Q, W_K


def _scores(tokens, written, W_Q, W_K):
    """Each query head with its key head: [head, query, key]."""
    return tokens @ W_Q @ (written @ W_K.repeat_interleave(len(W_Q) // len(W_K), 0)).mT


@declare("23.4", axes="head", says="Right for four layers with different numbers of heads and key heads.")
class MatchingShares:
    cases = (
        _layer(61, 6, 2, 20, 12, 0),
        _layer(47, 4, 1, 16, 9, 1),
        _layer(53, 9, 3, 18, 10, 2),
        _layer(37, 3, 3, 14, 8, 3),
    )

    def right(tokens, written, W_Q, W_K):
        return _own_best(_scores(tokens, written, W_Q, W_K))

    def in_turn(tokens, written, W_Q, W_K):
        """You repeated the key heads in turn (0, 1, 0, 1, ...). It is neighbouring heads that share one:
        0, 0, 0, 1, 1, 1 (`repeat_interleave`)."""
        return MatchingShares.right(tokens, written, W_Q, W_K.repeat(len(W_Q) // len(W_K), 1, 1))

    def keys_of_tokens(tokens, written, W_Q, W_K):
        """You made the keys from the tokens themselves. Make them from `written`, what the
        earlier head writes."""
        return MatchingShares.right(tokens, tokens, W_Q, W_K)

    def for_each_key(tokens, written, W_Q, W_K):
        """You ask for each key which query suits it best. Ask for each query which key: the last axis."""
        return _own_best(_scores(tokens, written, W_Q, W_K), -2)

    def exchanged(tokens, written, W_Q, W_K):
        """You made the queries from `written` and the keys from `tokens`. It is the other way round."""
        return MatchingShares.right(written, tokens, W_Q, W_K)

    def first_key_head(tokens, written, W_Q, W_K):
        """All heads use the first key head."""
        return MatchingShares.right(tokens, written, W_Q, W_K[:1])

    def unit_keys(tokens, written, W_Q, W_K):
        """You scaled the keys to length 1. In attention a longer key gets more: use the inner product."""
        keys = written @ W_K.repeat_interleave(len(W_Q) // len(W_K), 0)
        return _own_best(tokens @ W_Q @ normalize(keys, dim=-1).mT)

    def softmax(tokens, written, W_Q, W_K):
        """You took the mean of a softmax. Count how often the own key is the best."""
        return _own_softmax(_scores(tokens, written, W_Q, W_K))

    def counted(tokens, written, W_Q, W_K):
        """You counted the tokens. Divide by their number."""
        return MatchingShares.right(tokens, written, W_Q, W_K) * len(tokens)

    def not_the_best(tokens, written, W_Q, W_K):
        """You counted the tokens whose own key is not the best."""
        return 1 - MatchingShares.right(tokens, written, W_Q, W_K)


declared_shares = find_checker("23.4")


@checker("23.4")
def check_shares(attempt: Attempt) -> str:
    case = MatchingShares.cases[0]
    shape = _shape(attempt(*case))
    refuse(shape == (), HEADS_APART)
    key_heads = "That is one number for each key head. Every query head has queries of its own."
    refuse(shape == (len(case[3]),), key_heads)
    return declared_shares(attempt)


def _copying_head(tokens: int, d: int, head: int, vocab: int, k: int, seed: int):
    """Streams near their tokens' columns of W_U, and a head that copies nearly."""
    W_U = random(d, vocab, seed=seed)
    ids = torch.randperm(vocab, generator=seeded(seed))[:tokens]
    W_V = random(d, head, seed=seed + 20)
    W_O = W_V.T + 0.2 * random(head, d, seed=seed + 30)
    return W_U[:, ids].T + 1.2 * random(tokens, d, seed=seed + 10), W_V, W_O, W_U, ids, k


def _copying_mistakes(streams, W_V, W_O, W_U, ids, k) -> dict:
    """What is said of a wrong share, and the share."""
    own, logits = ids[:, None], streams @ W_V @ W_O @ W_U
    best, share = logits.topk(k).indices, lambda hit: hit.float().mean()
    no_head, smallest = (streams @ W_U).topk(k).indices, (-logits).topk(k).indices
    return {
        "This never goes through the head: times W_V, then W_O, then W_U.": share((no_head == own).any(1)),
        "You compare with row numbers. The token ids are in `ids`.": share(
            (best == torch.arange(len(ids))[:, None]).any(1)
        ),
        "You count anybody's token. Each row must find its own: `best == ids[:, None]`.": share(
            torch.isin(best, ids).any(1)
        ),
        "You ask for the very first. Among the k largest is enough.": share(logits.argmax(-1) == ids),
        "These are the k smallest logits.": share((smallest == own).any(1)),
        "You counted the tokens. Divide by their number.": (best == own).any(1).sum(),
        "You divide by all k places. A token counts once if one of its k places is right: `any(1)`.": share(
            best == own
        ),
    }


@checker("23.5")
def check_copying(attempt: Attempt) -> str:
    for sizes in ((83, 12, 6, 160, 5, 3), (61, 8, 4, 140, 3, 1), (53, 6, 3, 130, 4, 0)):
        streams, W_V, W_O, W_U, ids, k = _copying_head(*sizes)
        best = (streams @ W_V @ W_O @ W_U).topk(k).indices
        expected = (best == ids[:, None]).any(1).float().mean()
        found = _one_share(attempt(streams, W_V, W_O, W_U, ids, k))
        why = f"With {len(ids)} tokens and k = {k} the share should be {expected:.3f}"
        why += f", and yours is {found:.3f}."
        mistakes = _copying_mistakes(streams, W_V, W_O, W_U, ids, k)
        must_equal(found, expected, mistakes, 1e-5, lambda why=why: why)
    again = attempt(
        3.0 * streams, W_V, W_O, W_U, ids, k
    )  # a norm divides all logits of a token by one number
    why = "Streams three times as long must give the same share: the order of the logits stays."
    refuse(abs(float(again) - expected) > 1e-5, why)
    return "Right on three random heads, and the same when all streams are three times as long."
