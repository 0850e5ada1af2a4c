"""Checks of notebook 23, attention patterns."""

import torch
from torch.nn.functional import normalize

from mechlab.discovery.attention import head_scores, looked_for, repeated_tokens
from mechlab.loading.models import tiny
from mechlab.tokens import first_tokens
from mechlab_course.checking import close, declare, must_equal_in_all, random, refuse, seeded
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

    def everything_before(pattern):
        """You average over all places below the diagonal. The token before is the one line just below it."""
        return pattern.tril(-1).mean((0, 2, 3))

    def first_token(pattern):
        """This is attention to the very first token. The token before lies one to the left of each query."""
        return pattern[:, :, 1:, 0].mean((0, 2))

    def last_query(pattern):
        """This is the last position only. Take the mean over all that have a token before them."""
        return pattern[:, :, -1, -2].mean(0)

    def largest(pattern):
        """You took the largest over the positions. Take the mean."""
        return pattern.diagonal(-1, 2, 3).amax(2).mean(0)

    def how_often(pattern):
        """You count how often the token before gets most. Take the mean of the attention itself."""
        first = pattern.argmax(-1)[:, :, 1:] == torch.arange(pattern.shape[-1] - 1)
        return first.float().mean((0, 2))

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

    def every_pair(pattern, length):
        """You average over all pairs of a query and a key. Each query of the second half has one key: pick
        pairs, with two index tensors of one length."""
        queries = torch.arange(length + 1, 2 * length + 1)
        return pattern[:, :, queries][..., queries - length + 1].mean((0, 2, 3))

    def rows_and_columns(pattern, length):
        """Queries and keys are exchanged: rows are queries. A query of the second half looks back."""
        queries = torch.arange(length + 1, 2 * length + 1)
        return pattern[:, :, queries - length + 1, queries].mean((0, 2))

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
    answers = []
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
            "You compare keys with keys. Ask with the queries: `queries @ keys.T`.": _own_best(keys @ keys.T),
            "You took distances. Attention asks for the largest inner product.": _own_best(
                -torch.cdist(queries, keys)
            ),
            "You left out the keys behind each token. Here all keys are compared.": _own_best(scores.tril()),
            "You ask whether the own key is above the mean. It must be the best of all.": (
                (scores.diag() > scores.mean(1)).float().mean()
            ),
            "That is a percentage. Return a share, between 0 and 1.": 100 * expected,
            "You took the mean of a softmax. Count how often the own key is the best.": _own_softmax(scores),
            "You counted the tokens. Divide by their number.": expected * tokens,
            "You counted the tokens whose own key is not the best.": 1 - expected,
        }
        why = f"With {tokens} tokens the share should be {expected:.3f}, and yours is {found:.3f}."
        answers.append(
            (found, expected, mistakes, f"{why} Count the queries whose largest score is their own.")
        )
    must_equal_in_all(answers, 1e-5)
    return "Right on three random sets, and 1 where every key suits its query."


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
    mine = logits.gather(1, own)
    among = lambda given: share((given.topk(k).indices == own).any(1))
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
        "You added the stream itself. Only what the head writes is read.": among(streams @ W_U + logits),
        "Largest does not mean in size: a very negative logit is not large.": among(logits.abs()),
        "Its rank may be up to k − 1, counting from 0: among the k largest, `< k`.": share(
            (logits > mine).sum(1) <= k
        ),
        "The weights stand in the wrong order or transposed: streams @ W_V @ W_O @ W_U.": among(
            streams @ W_O.T @ W_V.T @ W_U
        ),
        "`any` runs over the tokens. For each token ask over its k places: `any(1)`.": share(
            (best == own).any(0)
        ),
        "These are the k smallest logits.": share((smallest == own).any(1)),
        "You counted the tokens. Divide by their number.": (best == own).any(1).sum(),
        "You divide by all k places. A token counts once if one of its k places is right: `any(1)`.": share(
            best == own
        ),
    }


@checker("23.5")
def check_copying(attempt: Attempt) -> str:
    answers = []
    for sizes in ((83, 12, 6, 160, 5, 3), (61, 8, 4, 140, 3, 1), (53, 6, 3, 130, 4, 0)):
        streams, W_V, W_O, W_U, ids, k = _copying_head(*sizes)
        best = (streams @ W_V @ W_O @ W_U).topk(k).indices
        expected = (best == ids[:, None]).any(1).float().mean()
        found = _one_share(attempt(streams, W_V, W_O, W_U, ids, k))
        why = f"With {len(ids)} tokens and k = {k} the share should be {expected:.3f}"
        why += f", and yours is {found:.3f}."
        mistakes = _copying_mistakes(streams, W_V, W_O, W_U, ids, k)
        answers.append(
            (found, expected, mistakes, f"{why} Count rows with their own id among the k largest.")
        )
    must_equal_in_all(answers, 1e-5)
    again = attempt(
        3.0 * streams, W_V, W_O, W_U, ids, k
    )  # a norm divides all logits of a token by one number
    why = "Streams three times as long must give the same share: the order of the logits stays."
    refuse(abs(float(again) - expected) > 1e-5, why)
    return "Right on three random heads, and the same when all streams are three times as long."


def _texts(attempt: Attempt, ids, seed: int) -> torch.Tensor:
    """The learner's texts, if they are made of `ids` and of a size to work with; else `NotYet`."""
    found = attempt(ids, seeded(seed))
    good = isinstance(found, torch.Tensor) and found.ndim == 2 and not found.is_floating_point()
    refuse(not good, "Return whole numbers in a tensor [batch, pos]: one text in each row.")
    batch, pos = found.shape
    size = f"You return {batch} texts of {pos} tokens; wanted are 8 to 32 texts of 20 to 128 tokens."
    refuse(not (8 <= batch <= 32 and 20 <= pos <= 128), size)
    refuse(not torch.isin(found, ids).all(), "Use the tokens in `ids` and no others.")
    return found.long()


def _rules(mask, copies) -> dict[str, float]:
    """What heads that follow other rules score on "induction", each looking where its rule says.

    mask, copies: [batch, query, key], where induction and duplicate-token heads look. Only queries with
    such a place count, as for real heads.
    """
    has, pos = mask.any(-1), mask.shape[-1]
    back = [(mask.diagonal(-d, 1, 2).sum() / has.sum()).item() for d in range(pos)]
    several = has.sum(0) >= 4  # texts
    fixed = (mask.sum(0).max(-1).values / has.sum(0).clamp_min(1))[several]
    even = copies / copies.sum(-1, keepdim=True).clamp_min(1)
    return {
        f"looks {back.index(max(back))} back, whatever stands there,": max(back),
        "looks at the copy itself (duplicate token)": (even * mask).sum(-1)[has].mean().item(),
        "looks everywhere alike": (mask.sum(-1) / torch.arange(1, pos + 1))[has].mean().item(),
        "looks at one fixed place from each position": fixed.sum().item() / max(1, len(fixed)),
    }


# The most that each of these may score, and what to do about it.
ALLOWED = (
    (0.35, "The distance from a token to what followed its copy must vary."),
    (0.25, "What follows a copy should be another token."),
    (0.25, "Use more different tokens."),
    (0.5, "The copies must stand elsewhere in other texts."),
)


def _rivals(tokens) -> None:
    """No head that follows another rule may score high on these texts; else `NotYet`."""
    mask = looked_for(tokens, "induction")
    few = mask.any(-1).sum(-1).min()
    why = f"A text of yours has {few} positions whose token was said before; at least 10 are needed."
    refuse(few < 10, why)
    rules = _rules(mask, looked_for(tokens, "duplicate token"))
    for (rule, score), (most, what) in zip(rules.items(), ALLOWED, strict=True):
        refuse(score > most, f"A head that {rule} scores {score:.2f} on your texts. {what}")


@checker("23.6")
def check_texts(attempt: Attempt, model) -> str:
    known = sorted({*range(min(model.cfg.d_vocab, 40_000))} - {*model.tokenizer.all_special_ids})
    texts = []
    for seed in (5, 6):
        order = torch.randperm(len(known), generator=seeded(seed))[:200]
        texts.append(_texts(attempt, torch.tensor(known)[order], seed))
        first = model.to_tokens("").cpu()[:, : first_tokens(model)].expand(len(texts[-1]), -1)
        _rivals(torch.cat([first, texts[-1]], dim=1))
    usual = head_scores(model, repeated_tokens(model, length=25, batch=2, seed=3), "induction").values
    layer, head = divmod(int(usual.argmax()), model.cfg.n_heads)
    tokens = torch.cat([first, texts[-1]], dim=1).to(model.cfg.device)
    reached = head_scores(model, tokens, "induction").values[layer, head].item()
    why = f"Head {layer}.{head}, the strongest induction head, scores only {reached:.2f} on your texts"
    why += f" ({usual.max():.2f} on tokens said twice). Let longer stretches come back."
    refuse(reached < 0.5, why)
    other = f"{layer}.{head} scores {reached:.2f} on new tokens"
    return f"No other rule scores high, and {other}: it does find what followed the copy."
