"""Checks of notebook 01, tokens and embeddings."""

import torch
from torch.nn.functional import normalize

from mechlab_course.checking import (
    close,
    compare,
    mistakes_in,
    only_wrong,
    random,
    refuse,
    whole_number,
)
from mechlab_course.checking import number as one_number
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("01.1")
def check_count_tokens(attempt: Attempt, model) -> str:
    for number in (7, 42, 1234567, -35, 10**12):
        expected, spaced = (
            model.to_tokens(text, prepend_bos=False).shape[1] for text in (f"{number}", f" {number}")
        )
        found = whole_number(attempt(model, number), "a number of tokens")
        if found != expected:
            raise NotYet(_miscounted(number, found, expected, spaced))
    tokenizer = _PairTokenizer()
    try:  # a tokenizer that reads digits in pairs: only asking it gives the right count
        found = attempt(tokenizer, 123456)
    except NotYet:
        # Right all the same if another method of the model was used: on the model itself it was right.
        found = 3 if tokenizer.other else 6
    here = "You count characters. Here every digit is a token, so it comes out right, but on a model that"
    refuse(found != 3, f"{here} reads digits in pairs it does not. Ask the tokenizer: `model.to_tokens`.")
    return "Five numbers, short, long and negative, and a tokenizer that reads digits in pairs."


def _miscounted(number: int, found: int, expected: int, spaced: int) -> str:
    if number < 0 and found == len(str(abs(number))):
        return f"You count digits. {number} also has a minus sign, and that is a token: ask the tokenizer."
    if found == 1:
        why = "If that is the number of rows, which is 1 for one text: the tokens lie along the other axis."
        return f"You returned 1 for {number}. {why}"
    if found in (expected + 1, spaced):
        begin = "Either the begin token is counted (prepend_bos=False leaves it out)"
        space = "there is a leading space, which is a token of its own here."
        return f"{number} gives {found}, one too many. {begin} or {space}"
    return f"{number} is {expected} tokens for this model, and you returned {found}."


class _PairTokenizer:
    """Cuts text into pieces of two; `other` says whether anything else of a model was asked for."""

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
    for token, k in ((17, 5), (0, 3), (17, 39)):
        _nearest(attempt, made, token, k)
    _nearest(attempt, model.W_E.detach().cpu()[:3000], 1500, 6)
    return "Cosine, not dot product; the token itself left out; best first."


def _nearest(attempt: Attempt, W_E: torch.Tensor, token: int, k: int) -> None:
    found = attempt.tensor(W_E, token, k, shape=(k,), axes="k", whole=True)
    struck = lambda scores: scores.index_fill(0, torch.tensor(token), -torch.inf)
    scores = lambda rows: rows @ rows[token]
    cosine = scores(normalize(W_E))
    expected = struck(cosine).topk(k).indices
    if torch.equal(found, expected):
        return

    def best(scores):
        """The token struck out, or the first of the list left out, or neither."""
        return struck(scores).topk(k).indices, scores.topk(k + 1).indices[1:], scores.topk(k).indices

    apart = -(W_E - W_E[token]).norm(dim=-1)
    lowest = cosine.argsort()[:k], struck(cosine).argsort()[:k]
    mistakes = {
        "You rank by the dot product, so long rows win. Divide each row by its length first.": best(
            scores(W_E)
        ),
        "You divide each column by its length. There must be one length for each row: "
        "`norm(dim=-1, keepdim=True)`.": best(scores(normalize(W_E, dim=0))),
        "You rank by distance, so rows of another length lose. Rank by the cosine.": best(apart),
        "You rank by the size of the cosine. A row that points the other way is not near.": best(
            cosine.abs()
        ),
        "You divide by the sum of the sizes. The length is `norm`, the root of the sum of squares.": best(
            scores(normalize(W_E, p=1))
        ),
        "These are the lowest cosines: sort the other way, largest first.": lowest,
    }
    for why, forms in mistakes.items():  # where one is the same with right scores, it tells nothing
        told = (
            form for form, right in zip(forms, best(cosine), strict=False) if not torch.equal(form, right)
        )
        refuse(any(torch.equal(found, form) for form in told), why)
    itself = "The token itself is in the list: it always has the highest cosine, 1. Leave it out."
    first = "(If you leave out the first of your list: with your scores the first is another token.)"
    refuse(token in found.tolist(), f"{itself} {first}")
    same = set(found.tolist()) == set(expected.tolist())
    refuse(same, "The right tokens in the wrong order: the highest cosine comes first.")
    right = f"the highest cosines are at {expected.tolist()}."
    raise NotYet(f"For token {token} you returned {found.tolist()}; {right}")


def _step(rows, a, b, c):
    return rows[b] - rows[a] + rows[c]


class Analogies:
    def wrong_two_signs(W, a, b, c):
        """You seem to compute a + b - c. It is b - a + c: from a to b, and the same step from c."""
        return normalize(W) @ (W[a] + W[b] - W[c])

    def c_taken_off(W, a, b, c):
        """You seem to take c off. The step b - a is added to c."""
        return normalize(W) @ (W[b] - W[a] - W[c])

    def without_a(W, a, b, c):
        """You seem to leave out a: b + c is no step from a to b."""
        return normalize(W) @ (W[b] + W[c])

    def near_c(W, a, b, c):
        """You seem to look for the nearest of c alone. The step b - a is missing."""
        return normalize(W) @ W[c]

    def distance(W, a, b, c):
        """You seem to rank by distance. Nearest means the highest cosine here."""
        return -(W - _step(W, a, b, c)).norm(dim=-1)

    def c_forbidden(W, a, b, c):
        """You seem to forbid c as an answer. The task is the honest version: every token is allowed."""
        return (normalize(W) @ _step(W, a, b, c)).index_fill(0, torch.tensor(c), -torch.inf)

    def turned_round(W, a, b, c):
        """You seem to compute a - b + c. The step goes from a to b, so it is b - a, added to c."""
        return normalize(W) @ _step(W, b, a, c)

    def dot_product(W, a, b, c):
        """You seem to rank by the dot product, so rows of great length win. Divide by each row's length."""
        return W @ _step(W, a, b, c)

    def unit_rows(W, a, b, c):
        """You seem to scale the rows to length 1 before b - a + c. The task uses the rows as they are."""
        return normalize(W) @ _step(normalize(W), a, b, c)

    def forbidden(W, a, b, c):
        """You seem to forbid a, b and c as answers. The task is the honest version: every token is
        allowed."""
        cosine = normalize(W) @ _step(W, a, b, c)
        return cosine.index_fill(0, torch.tensor([a, b, c]), -torch.inf)


@checker("01.3")
def check_analogy(attempt: Attempt) -> str:
    W_E = random(30, 6, seed=3) * torch.linspace(0.5, 3, 30)[:, None]
    # On these the mistakes differ from the truth and from each other; in the last two the answer is a itself.
    triples = [(0, 14, 25), (1, 2, 3), (2, 0, 5), (0, 1, 2), (5, 9, 14), (3, 29, 11), (0, 14, 21), (1, 9, 28)]
    best = lambda scores: [scores(W_E, *triple).argmax().item() for triple in triples]
    found = [whole_number(attempt(W_E, *triple), "one token id") for triple in triples]
    expected = best(lambda W, a, b, c: normalize(W) @ _step(W, a, b, c))
    for why, scores in mistakes_in(Analogies).items():
        refuse(found != expected and found == best(scores), why)
    for triple, mine, right in zip(triples, found, expected, strict=True):
        refuse(mine != right, f"For a, b, c = {triple} the nearest row is {right}; you returned {mine}.")
    moved = whole_number(attempt(W_E, 4, 4, 7), "one token id") != 7
    refuse(
        moved, "With a equal to b nothing is moved, so the answer must be c itself, and with yours it is not."
    )
    return "Eight analogies, and the one that changes nothing (a = b) gives c back."


def _turns(x, theta, position=None):
    """The angle of each position and pair."""
    n_pos, d = x.shape
    position = torch.arange(n_pos) if position is None else position
    return position[:, None] * theta ** (-torch.arange(0, d, 2) / d)


def _rotated(x, theta, position=None):
    turn, (first, second) = _turns(x, theta, position), x.chunk(2, -1)
    return torch.cat([first * turn.cos() - second * turn.sin(), second * turn.cos() + first * turn.sin()], -1)


def _interleave(x):
    """The first half of the numbers at 0, 2, 4 and so on, the second half between them."""
    return torch.stack(x.chunk(2, -1), -1).flatten(-2)


class Rotations:
    def sin_for_cos(x, theta):
        """sin and cos are exchanged: first' = first * cos - second * sin."""
        turn, (first, second) = _turns(x, theta), x.chunk(2, -1)
        return torch.cat(
            [first * turn.sin() - second * turn.cos(), second * turn.sin() + first * turn.cos()], -1
        )

    def first_already_turned(x, theta):
        """In the second formula you use the first half after it was turned. Use it as it came in."""
        turn, (first, second) = _turns(x, theta), x.chunk(2, -1)
        first = first * turn.cos() - second * turn.sin()
        return torch.cat([first, second * turn.cos() + first * turn.sin()], -1)

    def minus_in_both(x, theta):
        """There is a minus in both formulas. The second has a plus: second * cos + first * sin."""
        turn, (first, second) = _turns(x, theta), x.chunk(2, -1)
        return torch.cat(
            [first * turn.cos() - second * turn.sin(), second * turn.cos() - first * turn.sin()], -1
        )

    def halves_exchanged(x, theta):
        """The two halves come out exchanged: the first half stands first."""
        return _rotated(x, theta).roll(x.shape[1] // 2, -1)

    def degrees(x, theta):
        """You took the angles as degrees. They are in radians already."""
        return _rotated(x, theta, torch.arange(len(x)) * torch.pi / 180)

    def double_exponent(x, theta):
        """The exponent is -2 i / d_head for pair i; yours is twice that."""
        return _rotated(x, theta**2)

    def other_way(x, theta):
        """You turn the other way: the minus sign belongs to first' = first * cos - second * sin."""
        return _rotated(x, theta, -torch.arange(len(x)))

    def from_one(x, theta):
        """Positions start at 0, and yours start from 1: the first token must not be turned at all."""
        return _rotated(x, theta, torch.arange(len(x)) + 1)

    def neighbours(x, theta):
        """You pair neighbouring numbers (0 with 1). In this model number i goes with number i + d_head/2."""
        return _interleave(_rotated(torch.cat([x[:, ::2], x[:, 1::2]], -1), theta))

    def half_exponent(x, theta):
        """The exponent is -2 i / d_head for pair i; yours is half of that."""
        return _rotated(x, theta**0.5)

    def no_minus(x, theta):
        """The exponent is negative: later pairs turn more slowly, not faster."""
        return _rotated(x, 1 / theta)

    def fixed_theta(x, theta):
        """theta is an argument: use it, not a fixed number."""
        return _rotated(x, 10_000.0 if theta != 10_000 else 1e5)

    def interleaved(x, theta):
        """The pairs come out interleaved. First the d_head/2 first halves, then the second halves:
        `torch.cat`."""
        return _interleave(_rotated(x, theta))

    def same_angles(x, theta):
        """Every position is turned by the same angles. The angle is position times frequency."""
        return _rotated(x, theta, torch.ones(len(x)))


def _badly_rotated(found, x, theta) -> str:
    if not close(found.norm(dim=-1), x.norm(dim=-1)):
        return "A rotation keeps the length of every vector, and yours does not. Look at both formulas again."
    return only_wrong(found, _rotated(x, theta))


@checker("01.4")
def check_rotate(attempt: Attempt, model) -> str:
    for case in ((random(9, 16), 10_000.0), (random(9, 16), 500.0)):
        compare(attempt, case, _rotated, mistakes_in(Rotations), "pos d_head", otherwise=_badly_rotated)
    turned = attempt(random(1, 16).expand(9, 16).clone(), 10_000.0)
    same = close((turned[5] @ turned[3])[None], (turned[8] @ turned[6])[None])
    refuse(
        not same,
        "Two vectors at distance 2 should have the same product anywhere, and with yours they do not.",
    )
    if "rope_parameters" in vars(model.cfg):  # the model's own rotation, in one of its heads
        names = ["blocks.2.attn.hook_q", "blocks.2.attn.hook_rot_q"]
        _, cache = model.run_with_cache(torch.arange(5, 13)[None], names_filter=names)
        found = attempt(cache[names[0]][0, :, 0], model.cfg.rope_parameters["rope_theta"])
        equal = close(found, cache[names[1]][0, :, 0], 1e-3)
        refuse(not equal, "It does not equal the rotation in the model (hook_rot_q of layer 2, head 0).")
    return "Lengths are kept, only the distance matters, and it equals the model's own rotation."


QUESTIONS = """man king woman queen; France Paris Germany Berlin; France Paris Italy Rome
Japan Tokyo China Beijing; England London Russia Moscow; big bigger small smaller; good better bad worse
walk walked jump jumped; one first two second; cat cats dog dogs; he his she her"""


def _paradigm(seed: int, words: int = 24, forms: int = 8):
    """Every word in every form, word + form: only b - a + c tells which form of which word is asked for.

    b + c finds another row, made for it.
    """
    table = (random(words, 1, 32, seed=seed) + random(1, forms, 32, seed=seed + 1)).flatten(0, 1)
    first = torch.randperm(words, generator=torch.Generator().manual_seed(seed))
    second, k = first.roll(1), torch.arange(words) % (forms - 1)
    asked = [first * forms, first * forms + 1 + k, second * forms, second * forms + 1 + k]
    return torch.cat([table, table[asked[1]] + table[asked[2]]]), torch.stack(asked, 1)


def _neighbours(seed: int, near: int, to: int, count: int = 24):
    """d is a neighbour of b or of c, and the arithmetic hardly moves: a is one of the other's."""
    rows = random(4, count, 32, seed=seed)
    rows[near] = rows[to] + 0.3 * random(count, 32, seed=seed + 1)
    rows[0] = rows[3 - to] + 0.3 * random(count, 32, seed=seed + 2)
    return rows.flatten(0, 1), torch.arange(4 * count).view(4, count).T


def _joined(one, other):
    return torch.cat([one[0], other[0]]), torch.cat([one[1], other[1] + len(one[0])])


@checker("01.5")
def check_arithmetic_adds(attempt: Attempt, model) -> str:
    said = lambda table, asked: one_number(attempt(table, asked), "one share")
    needs = said(*_paradigm(0))
    refuse(not -1 <= needs <= 1.001, f"A share of the questions lies between 0 and 1; yours is {needs:.3g}.")
    why = f"Where only b − a + c leads to d, yours says {needs:.2f}, not about 1: there is no"
    refuse(needs < 0.7, f"{why} arithmetic in it, or what is taken off finds d too.")
    for other, near in (("c", 2), ("b", 1)):
        found = said(*_neighbours(5 * near, 3, near))
        why = f"In one table every d is just the nearest neighbour of {other}. Yours credits arithmetic"
        refuse(abs(found) > 0.2, f"{why} with {found:.2f}. Let a guess from {other} alone play too.")
    table, asked = _paradigm(20)
    anywhere = asked[torch.randperm(len(asked), generator=torch.Generator().manual_seed(1)), 3:]
    found = said(table, torch.cat([asked[:, :3], anywhere], 1))
    refuse(abs(found) > 0.25, f"Where nothing leads to d, yours says {found:.2f}, not about 0.")
    found = said(*_joined(_paradigm(30), _neighbours(40, 3, 2)))
    why = f"Where one half of the questions needs the arithmetic, yours says {found:.2f}, not about 0.5."
    refuse(abs(found - 0.5) > 0.2, f"{why} Count each question by itself.")
    rows = [row.split() for row in QUESTIONS.replace("\n", ";").split(";")]
    ids = torch.tensor([[model.to_single_token(f" {word}") for word in row] for row in rows])
    here = said(model.W_E.detach(), ids)
    return f"Right on five tables. On the model's own, the notebook's eleven questions give {here:.2f}."
