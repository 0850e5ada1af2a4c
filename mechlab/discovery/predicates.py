"""Predicates: what can be said about a token and what stands before it, true or false at each place of texts.

A predicate is written as a call, `previous(' and')` or `form('a number')`, and can be read back from that.
Programs (explaining.py) are short sums of them. Nothing looks ahead: a causal model cannot either.
"""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from mechlab.arguments import at_least
from mechlab.tokens import Prompts, texts_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NEAR = 8  # how far back `near` looks, in tokens

# kind -> how it is said; {} stands for what it is about
KINDS = {
    "token": "the token {}",
    "word": "the word {}",
    "previous": "after {}",
    "before": "two after {}",
    "bigram": "{} then {}",
    "near": f"{{}} in the last {NEAR} tokens",
    "form": "{}",
    "previous_form": "after {}",
    "context": "{}",
}
_LETTERS = r" ?[A-Za-z]*"
_LISTS = {
    "an article": "a an the",
    "a preposition": "of in to for with on at from by about as into like through after over between under",
    "a pronoun": "i you he she it we they me him her us them my your his its our their this that these those",
    "a form of be": "is are was were be been being am",
    "a modal verb": "can could will would shall should may might must",
    "a conjunction": "and or but nor so yet because although while if",
    "a question word": "who what when where why how which whose",
    "a number word": "one two three four five six seven eight nine ten hundred thousand million first second",
}
FORMS = {
    "a capital and small letters": r" ?[A-Z][a-z]+",
    "capitals only": r" ?[A-Z]{2,}",
    "a small word": r" [a-z]+",
    "the middle of a word": r"[a-z]+",
    "one letter": r" ?[A-Za-z]",
    "a long word": r" ?[A-Za-z]{8,}",
    "a number": r" ?\d+",
    "a line break": r".*\n.*",
    "white space": r"\s+",
    "the end of a sentence": r"[.!?]+",
    "a comma": r",",
    "a colon": r" ?[:;]",
    "a hyphen": r" ?[-–—]+",
    "a quotation mark": r""" ?["'“”‘’]+""",
    "an opening bracket": r" ?[(\[{]+",
    "a closing bracket": r"[)\]}]+.?",
    "a sign of code": r" ?[\\`_<>=+*/#$%@|~^&]+",
    "an apostrophe and letters": r"['’][a-z]+",
    "not ASCII": r".*[^\x00-\x7f].*",
    **{
        f"an ending in -{end}": f"{_LETTERS}{end}" for end in ("ing", "ed", "ly", "s", "er", "ion", "al", "y")
    },
    **{name: f" ?(?i:{words.replace(' ', '|')})" for name, words in _LISTS.items()},
}
CONTEXTS = (
    "said before",
    "said before, after the same word",
    "inside quotation marks",
    "inside brackets",
    "inside a block of code",
    "at the start of a line",
    "among the first 4 tokens",
    "among the first 12 tokens",
)


@dataclass(frozen=True)
class Predicate:
    """One thing that can be said of a place: its kind, one of `KINDS`, and what it is about."""

    kind: str
    about: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(repr, self.about))})"

    @property
    def words(self) -> str:
        """The same for people: after ' and'."""
        shown = self.about if self.kind in ("form", "previous_form", "context") else map(repr, self.about)
        return KINDS[self.kind].format(*shown)

    @classmethod
    def of(cls, text: "str | Predicate") -> "Predicate":
        """Read `previous(' and')`. Raises a `ValueError` that lists the kinds."""
        if isinstance(text, Predicate):
            return text
        try:
            call = ast.parse(text.strip(), mode="eval").body
            assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
            about = tuple(ast.literal_eval(each) for each in call.args)
            assert call.func.id in KINDS and all(isinstance(each, str) for each in about)
            assert len(about) == 1 + (call.func.id == "bigram")
        except (SyntaxError, ValueError, AssertionError):
            kinds = ", ".join(f"{kind}(...)" for kind in KINDS)
            raise ValueError(
                f"{text!r:.80} is no predicate. Write one of {kinds}, with texts in it."
            ) from None
        return cls(call.func.id, about)


class Vocabulary:
    """A tokenizer's tokens as texts, as words (no space before, small letters), and by form: [token]."""

    def __init__(self, texts: list[str]):
        said = np.array(texts, dtype=object)
        self.tokens, self.token_of = np.unique(said, return_inverse=True)
        self.words, self.word_of = np.unique(
            np.array([_word(text) for text in texts], dtype=object), return_inverse=True
        )
        found = [
            [bool(re.fullmatch(form, text, re.DOTALL)) for form in FORMS.values()] for text in self.tokens
        ]
        self.forms = np.array(found)[self.token_of]
        count = lambda *signs: np.array([sum(text.count(sign) for sign in signs) for text in texts])
        self.quotes, self.fences, self.breaks = count('"', "“", "”"), count("```"), count("\n")
        self.depth = count("(", "[", "{") - count(")", "]", "}")


def _word(text: str) -> str:
    """A token without the space before it and in small letters; white space stays as it is."""
    return text.strip().lower() or text


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    return Vocabulary(tokenizer.batch_decode([[n] for n in range(size)]))


class _Places:
    """The texts' tokens as numbers of tokens and of words, and what a kind finds at each place.

    Every method is a kind: [text, pos, found], the numbers of what is true there, -1 for nothing.
    """

    def __init__(self, vocabulary: Vocabulary, texts: np.ndarray):
        self.vocabulary, self.ids = vocabulary, texts
        self.said = vocabulary.word_of[texts]

    def token(self) -> np.ndarray:
        return self.vocabulary.token_of[self.ids][..., None]

    def word(self) -> np.ndarray:
        return self.said[..., None]

    def previous(self) -> np.ndarray:
        return _later(self.said, 1)[..., None]

    def before(self) -> np.ndarray:
        return _later(self.said, 2)[..., None]

    def bigram(self) -> np.ndarray:
        first = _later(self.said, 1)
        return np.where(first < 0, -1, first * len(self.vocabulary.words) + self.said)[..., None]

    def near(self) -> np.ndarray:
        return np.stack([_later(self.said, back) for back in range(1, NEAR + 1)], axis=-1)

    def form(self) -> np.ndarray:
        found = self.vocabulary.forms[self.ids]
        return np.where(found, np.arange(found.shape[-1]), -1)

    def previous_form(self) -> np.ndarray:
        return _later(self.form(), 1)

    def context(self) -> np.ndarray:
        return np.where(np.stack([*self._contexts()], axis=-1), np.arange(len(CONTEXTS)), -1)

    def _contexts(self) -> Iterable[np.ndarray]:
        """Whether each of CONTEXTS holds, in their order: [text, pos]."""
        of, pos = self.vocabulary, np.arange(self.ids.shape[1])
        same = self.said[:, :, None] == self.said[:, None, :]
        same &= pos[:, None] > pos  # [text, pos, earlier pos]
        yield same.any(-1)
        pairs = np.zeros_like(same)
        pairs[:, 1:, 1:] = same[:, 1:, 1:] & same[:, :-1, :-1]
        yield pairs.any(-1)
        yield _so_far(of.quotes[self.ids]) % 2 == 1
        yield _so_far(of.depth[self.ids]) > 0
        yield _so_far(of.fences[self.ids]) % 2 == 1
        yield _later(of.breaks[self.ids], 1) > 0
        yield np.broadcast_to(pos < 4, self.ids.shape)
        yield np.broadcast_to(pos < 12, self.ids.shape)


def _later(values: np.ndarray, steps: int) -> np.ndarray:
    """What stood so many tokens before, -1 where the text had not begun: [text, pos, ...]."""
    moved = np.full_like(values, -1)
    moved[:, steps:] = values[:, :-steps]
    return moved


def _so_far(counts: np.ndarray) -> np.ndarray:
    """The sum over all tokens before: [text, pos]."""
    return counts.cumsum(1) - counts


def _code(predicate: Predicate, vocabulary: Vocabulary) -> int:
    """The number under which a kind finds it. Raises a `ValueError` for what the vocabulary lacks."""
    listed, about = _names(predicate.kind, vocabulary), predicate.about
    if listed is vocabulary.words:
        about = tuple(map(_word, about))
    numbers = [_position(listed, each) for each in about]
    if min(numbers) < 0:
        wanted = {"token": "a token of the vocabulary, with its space"}
        others = "words of one token" if listed is vocabulary.words else f"one of: {'; '.join(listed)}"
        raise ValueError(
            f"{predicate}: there is nothing of that name. It takes {wanted.get(predicate.kind, others)}."
        )
    return numbers[0] if len(numbers) == 1 else numbers[0] * len(listed) + numbers[1]


def _names(kind: str, vocabulary: Vocabulary) -> np.ndarray:
    fixed = {"form": [*FORMS], "previous_form": [*FORMS], "context": CONTEXTS}
    if kind in fixed:
        return np.array(fixed[kind], dtype=object)
    return vocabulary.tokens if kind == "token" else vocabulary.words


def _position(listed: np.ndarray, name: str) -> int:
    """Where a name stands in a list, -1 if it does not."""
    found = np.flatnonzero(listed == name)
    return int(found[0]) if len(found) else -1


def _named(kind: str, code: int, vocabulary: Vocabulary) -> Predicate:
    """What a number stands for."""
    listed = _names(kind, vocabulary)
    numbers = divmod(code, len(listed)) if kind == "bigram" else (code,)
    return Predicate(kind, tuple(str(listed[n]) for n in numbers))


@dataclass(frozen=True, eq=False)
class Reading:
    """Texts, and which predicates are true at which of their places.

    texts: [text, pos], as tokens; true: [place, predicate], sparse zeros and ones
    skip:  how many positions of each text are no places (the attention sink)

    A place is a position of a text from `skip` on; places are counted through the texts, text by text.
    """

    texts: Int[Tensor, "text pos"]
    predicates: tuple[Predicate, ...]
    true: sparse.csr_array
    vocabulary: Vocabulary
    skip: int

    def __repr__(self) -> str:
        count, length = self.texts.shape
        return f"{count} texts of {length} tokens; {len(self.predicates):,} predicates"

    def flat(self, values: Float[Tensor, "text pos"]) -> np.ndarray:
        """Values of the texts' tokens as [place]. Raises a `ValueError` for those of other texts."""
        values = torch.as_tensor(values)
        if values.shape != self.texts.shape:
            raise ValueError(
                f"The activations are {tuple(values.shape)}, and the texts {tuple(self.texts.shape)}: give "
                "one number for each token, those that are skipped too."
            )
        return values[:, self.skip :].detach().double().cpu().numpy().ravel()

    def on_tokens(self, places: np.ndarray) -> Float[Tensor, "text pos"]:
        """The reverse of `flat`; what is skipped is 0."""
        found = torch.zeros(self.texts.shape, dtype=torch.float64)
        found[:, self.skip :] = torch.from_numpy(places).view(len(self.texts), -1)
        return found.float()

    @cached_property
    def tokens(self) -> Int[Tensor, "place"]:
        """The token at each place."""
        return self.texts[:, self.skip :].flatten()

    def said(self, tokens: Int[Tensor, "token"]) -> str:
        """Tokens as text."""
        return "".join(self.vocabulary.tokens[self.vocabulary.token_of[tokens.numpy()]])

    @cached_property
    def text_of(self) -> np.ndarray:
        """The number of the text of each place."""
        return np.arange(len(self.texts)).repeat(self.texts.shape[1] - self.skip)

    @cached_property
    def index(self) -> dict[Predicate, int]:
        """The column of each predicate."""
        return {predicate: n for n, predicate in enumerate(self.predicates)}

    def dense(self, columns: list[int]) -> np.ndarray:
        """Some columns of `true` as an ordinary array."""
        return self._by_predicate[:, columns].toarray()

    @cached_property
    def _by_predicate(self) -> sparse.csc_array:
        return self.true.tocsc()

    def columns(self, predicates: Iterable[Predicate]) -> np.ndarray:
        """Where these are true, [place, predicate], also such as were never counted."""
        asked = [*predicates]
        new = [each for each in dict.fromkeys(asked) if each not in self.index]
        codes = _coded(new, self.vocabulary)
        fresh = _matrix(self.texts, codes, self.vocabulary, self.skip).toarray().T
        order = [each for kind in codes for each in new if each.kind == kind]  # as they stand in the matrix
        made = dict(zip(order, fresh, strict=True))
        known = self.dense([self.index[each] for each in asked if each in self.index]).T
        made |= dict(zip([each for each in asked if each in self.index], known, strict=True))
        return np.stack([made[each] for each in asked], axis=1) if asked else np.zeros((len(self.tokens), 0))

    def read(self, texts: Int[Tensor, "text pos"]) -> "Reading":
        """Other texts, with the same predicates."""
        true = _matrix(texts, _coded(self.predicates, self.vocabulary), self.vocabulary, self.skip)
        return Reading(texts, self.predicates, true, self.vocabulary, self.skip)


def read_predicates(
    model: "TransformerBridge", train: Prompts, test: Prompts, *, fewest: int = 6, skip: int = 1
) -> tuple[Reading, Reading]:
    """What can be said about texts: the predicates true at `fewest` places of `train` or more, on both.

    Texts are split, never tokens: the words of one text come again and again in it. Raises a `ValueError`
    where a text stands in both.
    """
    at_least("fewest", fewest, 1)
    texts = [texts_of(model, each).cpu() for each in (train, test)]
    for each in texts:
        if each.shape[1] <= skip or not len(each):
            raise ValueError(
                f"The texts are {tuple(each.shape)}: behind position {skip - 1} there is nothing."
            )
    shared = {*map(tuple, texts[0].tolist())} & {*map(tuple, texts[1].tolist())}
    if shared:
        raise ValueError(
            f"{len(shared)} of the texts stand in both: a score on what the search has seen is none. Split "
            "by text."
        )
    vocabulary = _vocabulary(model.tokenizer, model.cfg.d_vocab)
    codes = _frequent(_Places(vocabulary, texts[0].numpy()), fewest, skip)
    listed = tuple(_named(kind, code, vocabulary) for kind, found in codes.items() for code in found.tolist())
    both = (_matrix(each, codes, vocabulary, skip) for each in texts)
    one, other = (Reading(t, listed, true, vocabulary, skip) for t, true in zip(texts, both, strict=True))
    return one, other


def _frequent(places: _Places, fewest: int, skip: int) -> dict[str, np.ndarray]:
    """The codes of each kind that are found often enough, rising; `near` counts a place once a step."""
    codes = {}
    for kind in KINDS:
        found, counts = np.unique(getattr(places, kind)()[:, skip:], return_counts=True)
        codes[kind] = found[(counts >= fewest) & (found >= 0)]
    return codes


def _coded(predicates: Iterable[Predicate], vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    codes: dict[str, list[int]] = {}
    for each in predicates:
        codes.setdefault(each.kind, []).append(_code(each, vocabulary))
    return {kind: np.array(found) for kind, found in codes.items()}


def _matrix(
    texts: Int[Tensor, "text pos"], codes: dict[str, np.ndarray], vocabulary: Vocabulary, skip: int
) -> sparse.csr_array:
    """Where each code is found: [place, predicate], one kind after the other."""
    places, parts = _Places(vocabulary, texts.numpy()), []
    for kind, wanted in codes.items():
        found = getattr(places, kind)()[:, skip:]
        found = found.reshape(-1, found.shape[-1])
        order = np.argsort(wanted)
        at = np.searchsorted(wanted, found, sorter=order).clip(max=len(wanted) - 1)
        column = order[at] if len(wanted) else at
        hit = wanted[column] == found if len(wanted) else np.zeros(found.shape, dtype=bool)
        place = np.broadcast_to(np.arange(len(found))[:, None], found.shape)
        shape = (len(found), len(wanted))
        part = sparse.csr_array((np.ones(hit.sum()), (place[hit], column[hit])), shape=shape)
        part.sum_duplicates()
        part.data[:] = 1
        parts.append(part)
    size = texts[:, skip:].numel()
    return sparse.hstack(parts, format="csr") if parts else sparse.csr_array((size, 0))
