"""Checks of notebook 01, tokens and embeddings."""

import torch

from mechlab_course.checking import close, is_like, only_wrong, random, whole_number
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("01.1")
def check_count_tokens(attempt: Attempt, model) -> str:
    for number in (7, 42, 1234567, -35, 10**12):
        found = whole_number(attempt(model, number), "a number of tokens")
        expected = model.to_tokens(str(number), prepend_bos=False).shape[1]
        spaced = model.to_tokens(f" {number}", prepend_bos=False).shape[1]
        if found == expected:
            continue
        if number < 0 and found == len(str(abs(number))):
            raise NotYet(
                f"You count digits. {number} also has a minus sign, and that is a token: ask the tokenizer."
            )
        if found == 1:
            raise NotYet(
                f"You returned 1 for {number}. If that is the number of rows, which is 1 for one text: the tokens lie "
                "along the other axis."
            )
        if found in (expected + 1, spaced):
            raise NotYet(
                f"{number} gives {found}, one too many. Either the begin token is counted (prepend_bos=False leaves it "
                "out) or there is a leading space, which is a token of its own here."
            )
        raise NotYet(f"{number} is {expected} tokens for this model, and you returned {found}.")
    tokenizer = _PairTokenizer()
    try:  # a tokenizer that reads digits in pairs: only asking it gives the right count
        found = attempt(tokenizer, 123456)
    except NotYet:
        # Right all the same if another method of the model was used: on the model itself it was right.
        found = 3 if tokenizer.other else 6
    if found != 3:
        raise NotYet(
            "You count characters. Here every digit is a token, so it comes out right, but on a model that reads "
            "digits in pairs it does not. Ask the tokenizer: `model.to_tokens`."
        )
    return "Five numbers, short, long and negative, and a tokenizer that reads digits in pairs."


class _PairTokenizer:
    """Cuts text into pieces of two characters; `other` says whether anything else of a model was asked for."""

    other = False

    def to_str_tokens(self, text, prepend_bos: bool = True, **_) -> list[str]:
        text = text[0] if isinstance(text, list) else text
        return ["<bos>"] * prepend_bos + [text[i : i + 2] for i in range(0, len(text), 2)]

    def to_tokens(self, text, prepend_bos: bool = True, **_) -> torch.Tensor:
        return torch.zeros(1, len(self.to_str_tokens(text, prepend_bos)), dtype=torch.long)

    @property
    def tokenizer(self):
        self.other = True
        raise AttributeError("this small tokenizer has to_tokens and to_str_tokens only")


@checker("01.2")
def check_nearest_tokens(attempt: Attempt, model) -> str:
    # Rows of very different lengths, on which the dot product and the cosine disagree.
    made = random(40, 8) * torch.linspace(0.2, 5, 40)[:, None]
    made[3] = 20 * made[17]
    for W_E, token, k in (
        (made, 17, 5),
        (made, 0, 3),
        (made, 17, 39),
        (model.W_E.detach().cpu()[:3000], 1500, 6),
    ):
        found = attempt.tensor(W_E, token, k, shape=(k,), axes="k", whole=True)
        unit = W_E / W_E.norm(dim=-1, keepdim=True)
        cosine = unit @ unit[token]
        product, lengths = W_E @ W_E[token], W_E.norm(dim=0, keepdim=True)
        by_column = (W_E / lengths) @ (W_E[token] / lengths[0])
        struck = lambda scores, token=token: scores.index_fill(0, torch.tensor(token), -torch.inf)
        expected = struck(cosine).topk(k).indices
        if torch.equal(found, expected):
            continue
        rankings = {
            "You rank by the dot product, so long rows win. Divide each row by its length first.": product,
            "You divide each column by its length. There must be one length for each row: `norm(dim=-1, keepdim=True)`.": by_column,
        }
        mistakes = {}
        for message, scores in rankings.items():  # the token struck out, or the first of the list left out
            forms = (struck(scores).topk(k).indices, scores.topk(k + 1).indices[1:], scores.topk(k).indices)
            if any(torch.equal(found, form) for form in forms):
                mistakes[message] = found
        for lowest in (cosine.argsort()[:k], struck(cosine).argsort()[:k]):
            if torch.equal(found, lowest):
                mistakes["These are the lowest cosines: sort the other way, largest first."] = found
        is_like(found, mistakes, 0)
        if token in found.tolist():
            raise NotYet(
                "The token itself is in the list: it always has the highest cosine, 1. Leave it out. (If you leave out "
                "the first of your list: with your scores the first is another token.)"
            )
        if set(found.tolist()) == set(expected.tolist()):
            raise NotYet("The right tokens in the wrong order: the highest cosine comes first.")
        raise NotYet(
            f"For token {token} you returned {found.tolist()}; the highest cosines are at {expected.tolist()}."
        )
    return "Cosine, not dot product; the token itself left out; best first."


@checker("01.3")
def check_analogy(attempt: Attempt) -> str:
    W_E = random(30, 6, seed=3) * torch.linspace(0.5, 3, 30)[:, None]
    unit = W_E / W_E.norm(dim=-1, keepdim=True)
    best = lambda rows, target: (rows @ target).argmax().item()

    def forbidden(a: int, b: int, c: int) -> int:
        cosine = unit @ (W_E[b] - W_E[a] + W_E[c])
        return cosine.index_fill(0, torch.tensor([a, b, c]), -torch.inf).argmax().item()

    mistakes = {
        "You seem to compute a - b + c. The step goes from a to b, so it is b - a, added to c.": lambda a, b, c: (
            best(unit, W_E[a] - W_E[b] + W_E[c])
        ),
        "You seem to rank by the dot product, so rows of great length win. Divide by each row's length.": lambda a, b, c: (
            best(W_E, W_E[b] - W_E[a] + W_E[c])
        ),
        "You seem to scale the rows to length 1 before b - a + c. The task uses the rows as they are.": lambda a, b, c: (
            best(unit, unit[b] - unit[a] + unit[c])
        ),
        "You seem to forbid a, b and c as answers. The task is the honest version: every token is allowed.": forbidden,
    }
    # On these the mistakes differ from the truth and from each other; in the last two the answer is a itself.
    triples = [(0, 14, 25), (1, 2, 3), (2, 0, 5), (0, 1, 2), (5, 9, 14), (3, 29, 11), (0, 14, 21), (1, 9, 28)]
    found = {t: whole_number(attempt(W_E, *t), "one token id") for t in triples}
    expected = {(a, b, c): best(unit, W_E[b] - W_E[a] + W_E[c]) for a, b, c in triples}
    wrong = [t for t in triples if found[t] != expected[t]]
    for message, mistake in mistakes.items():
        if wrong and all(found[t] == mistake(*t) for t in triples):
            raise NotYet(message)
    if wrong:
        raise NotYet(
            f"For a, b, c = {wrong[0]} the nearest row is {expected[wrong[0]]}; you returned {found[wrong[0]]}."
        )
    if whole_number(attempt(W_E, 4, 4, 7), "one token id") != 7:
        raise NotYet(
            "With a equal to b nothing is moved, so the answer must be c itself, and with yours it is not."
        )
    return "Eight analogies, and the one that changes nothing (a = b) gives c back."


@checker("01.4")
def check_rotate(attempt: Attempt, model) -> str:
    x = random(9, 16)
    for theta in (10_000.0, 500.0):
        found = attempt.tensor(x, theta, shape=(9, 16), axes="pos d_head")
        if not close(found, _rotated(x, theta), 1e-4):
            mistakes = {
                "You turn the other way: the minus sign belongs to first' = first * cos - second * sin.": _rotated(
                    x, theta, sign=-1
                ),
                "Positions start at 0, and yours start from 1: the first token must not be turned at all.": _rotated(
                    x, theta, start=1
                ),
                "You pair neighbouring numbers (0 with 1). In this model number i goes with number i + d_head/2.": _interleaved(
                    x, theta
                ),
                "The exponent is -2 i / d_head for pair i; yours is half of that.": _rotated(x, theta**0.5),
                "The exponent is negative: later pairs turn more slowly, not faster.": _rotated(x, 1 / theta),
                "theta is an argument: use it, not a fixed number.": _rotated(
                    x, 10_000.0 if theta != 10_000 else 1e5
                ),
                "The pairs come out interleaved. First the d_head/2 first halves, then the second halves: `torch.cat`.": _rotated(
                    x, theta
                )[:, torch.arange(16).reshape(2, 8).T.reshape(-1)],
                "Every position is turned by the same angles. The angle is position times frequency.": _rotated(
                    x, theta, same=True
                ),
            }
            is_like(found, mistakes)
            if not close(found.norm(dim=-1), x.norm(dim=-1)):
                raise NotYet(
                    "A rotation keeps the length of every vector, and yours does not. Look at both formulas again."
                )
            raise NotYet(only_wrong(found, _rotated(x, theta)))
    constant = random(1, 16).expand(9, 16).clone()
    turned = attempt(constant, 10_000.0)
    if not close((turned[5] @ turned[3])[None], (turned[8] @ turned[6])[None]):
        raise NotYet(
            "Two vectors at distance 2 should have the same product anywhere, and with yours they do not."
        )
    if "rope_parameters" in vars(model.cfg):  # the model's own rotation, in one of its heads
        names = ["blocks.2.attn.hook_q", "blocks.2.attn.hook_rot_q"]
        _, cache = model.run_with_cache(torch.arange(5, 13)[None], names_filter=names)
        theta = model.cfg.rope_parameters["rope_theta"]
        if not close(attempt(cache[names[0]][0, :, 0], theta), cache[names[1]][0, :, 0], 1e-3):
            raise NotYet("It does not equal the rotation in the model (hook_rot_q of layer 2, head 0).")
    return "Lengths are kept, only the distance matters, and it equals the model's own rotation."


def _rotated(x, theta, sign=1, start=0, same=False):
    n_pos, d = x.shape
    position = torch.ones(n_pos) if same else torch.arange(start, start + n_pos)
    turn = sign * position[:, None] * theta ** (-torch.arange(0, d, 2) / d)
    first, second = x[:, : d // 2], x[:, d // 2 :]
    return torch.cat([first * turn.cos() - second * turn.sin(), second * turn.cos() + first * turn.sin()], -1)


def _interleaved(x, theta):
    d = x.shape[1]
    order = torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])
    turned = torch.empty_like(x)
    turned[:, order] = _rotated(x[:, order], theta)
    return turned
