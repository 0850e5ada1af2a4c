"""Explanations that are programs: found by search, scored on texts that the search has not seen.

An explanation predicts: where is this neuron or feature active, and how much (Bills et al. 2023)? Here it is
a short sum of predicates (predicates.py), found by orthogonal matching pursuit, so that no other model has to
write or to judge it. Beside every score stands the plainest explanation there is: a look-up table with the
mean activation of each token.
"""

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least
from mechlab.discovery.predicates import Predicate, Reading

LOUD = 0.02  # the share of places that counts as active, where more than that have any activation
PROMPT = """A unit inside a language model is active at some tokens, which stand between « and ».

Active:
{loud}

Not active:
{quiet}

In a few words, what is the unit active at? It is active at"""
ABOUT_THE_TOKEN = ("token", "word", "form")  # what a table of tokens says already


@dataclass(frozen=True, eq=False)
class Lookup:
    """The explanation without a thought: at each token its mean activation in training.

    means: [d_vocab]; a token that training does not have gets the mean of all places
    """

    means: Float[Tensor, "d_vocab"]

    def predict(self, texts: Reading) -> Float[Tensor, "text pos"]:
        """What the table expects at each token; 0 where a reading skips."""
        return texts.on_tokens(self.means[texts.tokens].double().numpy())


@dataclass(frozen=True)
class ExplanationScore:
    """How well a program predicts on some texts, and beside it its look-up table.

    correlation, lookup:       of predicted and true activations over places (simulation)
    f1, lookup_f1:             is it active here, yes or no? (detection)
    balanced, lookup_balanced: the mean of two shares: active places found, others left alone; chance 0.5
    active:                    how many places are active
    held_out:                  whether none of these texts is one of those of the search
    """

    correlation: float
    lookup: float
    f1: float
    lookup_f1: float
    balanced: float
    lookup_balanced: float
    active: int
    held_out: bool

    def __repr__(self) -> str:
        where = "held-out texts" if self.held_out else "the texts of the search"
        return (
            f"On {where} ({self.active} active places): correlation {self.correlation:.2f} (look-up table "
            f"{self.lookup:.2f}), F1 {self.f1:.2f} ({self.lookup_f1:.2f}), balanced accuracy "
            f"{self.balanced:.2f} ({self.lookup_balanced:.2f})"
        )


@dataclass(frozen=True, eq=False)
class Program:
    """A sum of predicates that predicts an activation: base + weight · predicate + ...

    on_table: the sum is added to the look-up table, and says what the table leaves over
    lookup:   the table of tokens, its baseline
    training: the texts that it was found on; activity: the true activations there, [text, pos]
    """

    base: float
    weights: tuple[float, ...]
    predicates: tuple[Predicate, ...]
    on_table: bool
    lookup: Lookup
    training: Reading = field(repr=False)
    activity: Float[Tensor, "text pos"] = field(repr=False)

    def __str__(self) -> str:
        terms = [f"{weight:.3g} * {each}" for weight, each in zip(self.weights, self.predicates, strict=True)]
        return " + ".join([*terms, f"{self.base:.3g}"])

    def __repr__(self) -> str:
        first = ["look-up table of tokens"] if self.on_table else []
        terms = zip(self.weights, self.predicates, strict=True)
        return "\n".join([*first, *(f"{weight:+8.3g}  {each.words}" for weight, each in terms)])

    def predict(self, texts: Reading) -> Float[Tensor, "text pos"]:
        """The activation that it expects at each token; 0 where a reading skips."""
        return texts.on_tokens(self._at(texts))

    def _at(self, texts: Reading) -> np.ndarray:
        found = self.base + texts.columns(self.predicates) @ np.array(self.weights)
        return found + texts.flat(self.lookup.predict(texts)) if self.on_table else found

    @cached_property
    def level(self) -> float:
        """The size of activation from which a place counts as active: the loudest 2 %, but never 0."""
        size = np.abs(self.training.flat(self.activity))
        return max(float(np.quantile(size, 1 - LOUD)), float(size[size > 0].min()))

    @cached_property
    def _cuts(self) -> tuple[float, float]:
        """From which prediction on the program and the table say "active": what is best in training."""
        true = self.training.flat(self.activity)
        active = np.abs(true) >= self.level
        table = _without_own_text(self.training, true)
        return _best_cut(self._at(self.training), active), _best_cut(table, active)

    def score(self, activity: Float[Tensor, "text pos"], texts: Reading) -> ExplanationScore:
        """Compare with the true activations on some texts, which should be held-out ones."""
        true = _finite(_read(texts).flat(activity))
        if np.ptp(true) == 0:
            raise ValueError("It is never active on these texts, or always alike: there is nothing to score.")
        active, said = np.abs(true) >= self.level, (self._at(texts), texts.flat(self.lookup.predict(texts)))
        both = [
            (_correlation(p, true), *_detected(p, cut, active))
            for p, cut in zip(said, self._cuts, strict=True)
        ]
        mixed = [float(value) for pair in zip(*both, strict=True) for value in pair]
        searched, scored = ({*map(tuple, each.texts.tolist())} for each in (self.training, texts))
        return ExplanationScore(*mixed, active=int(active.sum()), held_out=searched.isdisjoint(scored))

    def evidence(self, examples: int = 5, around: int = 8) -> dict[str, list[str]]:
        """What a person or a model would be shown: from the training texts, "loud", "quiet" and "tokens".

        loud: places where the unit is most active, one a text; quiet: places where it is not; the token in
        question stands between « and ». tokens: the loudest different tokens, without the space before
        """
        at_least("examples", examples, 1)
        size, texts = np.abs(self.training.flat(self.activity)), self.training
        order = np.argsort(-size, kind="stable")
        order = order[size[order] > 0]
        first_of = lambda what: order[np.sort(np.unique(what[order], return_index=True)[1])][:examples]
        quiet = np.flatnonzero(size < self.level)
        spread = quiet[np.linspace(0, max(len(quiet) - 1, 0), min(examples, len(quiet))).astype(int)]
        show = lambda places: [shown(texts, int(place), around) for place in places]
        words = texts.vocabulary.word_of[texts.tokens]
        tokens = [texts.said(texts.tokens[[place]]).strip() for place in first_of(words)]
        return {"loud": show(first_of(texts.text_of)), "quiet": show(spread), "tokens": tokens}

    def ask(self, ask: Callable[[str], str], *, examples: int = 5, prompt: str = PROMPT) -> str:
        """What a language model calls it, from the evidence. No score depends on the answer.

        ask:    any function from a prompt to a text
        prompt: with {loud}, {quiet} or {tokens} in it
        Raises a `ValueError` where the prompt has none of the three, or the function returns nothing.
        """
        found = self.evidence(at_least("examples", examples, 1))
        lines = {name: "\n".join(f"- {each}" for each in found[name]) for name in ("loud", "quiet")}
        lines["tokens"] = ", ".join(found["tokens"])
        if not any(f"{{{name}}}" in prompt for name in lines):
            raise ValueError("The prompt shows no evidence: write {loud}, {quiet} or {tokens} in it.")
        said = ask(re.sub(r"\{(loud|quiet|tokens)\}", lambda at: lines[at[1]], prompt))
        if not isinstance(said, str) or not said.strip():
            raise ValueError(f"The function that was asked returned {said!r:.80}; a sentence was wanted.")
        return said.strip()


def explain(
    activity: Float[Tensor, "text pos"],
    texts: Reading,
    *,
    terms: int = 8,
    on_table: bool = False,
    using: Sequence[str | Predicate] | None = None,
) -> Program:
    """Find the program that predicts an activation on these texts.

    At most so many terms. Each is the predicate that explains most of what the others leave over; then all
    weights are fitted anew (orthogonal matching pursuit). How many is chosen inside the
    training texts: the search is run on two thirds of them and tried on the rest.

    activity: one number for each token, those that are skipped too
    on_table: start from the look-up table, and search only what the token itself does not say
    using:    predicates of your own; only their weights are fitted
    Raises a `ValueError` for a unit that is never active, or always alike.
    """
    at_least("terms", terms, 1)
    true = _finite(_read(texts).flat(activity))
    if np.ptp(true) == 0:
        raise ValueError(
            f"On these {len(true):,} places it is never active, or always alike: there is nothing to explain."
        )
    rest = true - _without_own_text(texts, true) if on_table else true
    if using is not None:
        using = [using] if isinstance(using, str) else using
        chosen = [Predicate.of(each) for each in using]
    else:
        allowed = np.array([not on_table or each.kind not in ABOUT_THE_TOKEN for each in texts.predicates])
        size = _best_size(texts, rest, terms, allowed)
        columns, _ = _search(texts, rest, size, np.ones(len(rest), dtype=bool), allowed)
        chosen = [texts.predicates[n] for n in columns]
    base, *weights = _fit(texts.columns(chosen), rest).tolist()
    table = Lookup(_means(texts, true))
    return Program(
        base, tuple(weights), tuple(chosen), on_table, table, texts, torch.as_tensor(activity).cpu()
    )


def _finite(true: np.ndarray) -> np.ndarray:
    if not np.isfinite(true).all():
        raise ValueError("The activations hold NaN or infinite values.")
    return true


def _read(texts: Reading) -> Reading:
    """The texts, if they have been read; a `TypeError` for tokens."""
    if not isinstance(texts, Reading):
        raise TypeError(f"texts is a {type(texts).__name__}: give what `ml.read_predicates` returns.")
    return texts


def _search(
    texts: Reading, true: np.ndarray, terms: int, rows: np.ndarray, allowed: np.ndarray
) -> tuple[list[int], list[np.ndarray]]:
    """The columns in the order in which they are taken, and the fit at each size, on some of the places."""
    counts = rows @ texts.true
    spread = np.sqrt(np.maximum(counts * (1 - counts / rows.sum()), 0))
    use = allowed & (spread > 0)
    rest = np.where(rows, true - true[rows].mean(), 0)
    chosen: list[int] = []
    fits: list[np.ndarray] = []
    for _ in range(terms):
        gain = np.divide(np.abs(rest @ texts.true), spread, out=np.zeros(len(spread)), where=use)
        gain[chosen] = 0
        if gain.max() < 1e-9:
            break
        chosen.append(int(gain.argmax()))
        seen = texts.dense(chosen)
        fits.append(_fit(seen[rows], true[rows]))
        rest = np.where(rows, true - _value(seen, fits[-1]), 0)
    return chosen, fits


def _best_size(texts: Reading, true: np.ndarray, terms: int, allowed: np.ndarray) -> int:
    """How many terms predict best on every third training text, when searched on the others."""
    held = texts.text_of % 3 == 2
    if not held.any() or np.ptp(true[~held]) == 0 or np.ptp(true[held]) == 0:
        return 1
    chosen, fits = _search(texts, true, terms, ~held, allowed)
    seen = texts.dense(chosen)[held]
    scores = [_correlation(_value(seen[:, : len(fit) - 1], fit), true[held]) for fit in fits]
    return 1 + int(np.argmax(scores)) if scores else 1


def _fit(seen: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Least squares: the base, and a weight for each column."""
    full = np.column_stack([np.ones(len(true)), seen])
    return np.linalg.lstsq(full.T @ full, full.T @ true, rcond=1e-10)[0]


def _value(seen: np.ndarray, fit: np.ndarray) -> np.ndarray:
    return fit[0] + seen @ fit[1:]


def _means(texts: Reading, true: np.ndarray) -> Float[Tensor, "d_vocab"]:
    """The mean activation at each token; the mean of all where it does not occur."""
    ids, size = texts.tokens.numpy(), len(texts.vocabulary.token_of)
    counts = np.bincount(ids, minlength=size)
    sums = np.bincount(ids, weights=true, minlength=size)
    return torch.from_numpy(np.where(counts, sums / np.maximum(counts, 1), true.mean())).float()


def _without_own_text(texts: Reading, true: np.ndarray) -> np.ndarray:
    """What the table says at each training place when the place's own text is left out of it."""
    ids, size = texts.tokens.numpy(), len(texts.vocabulary.token_of)
    pair, of_pair = np.unique(texts.text_of * size + ids, return_inverse=True)
    counts, sums = (np.bincount(ids, weights=w, minlength=size) for w in (None, true))
    own, own_sums = (np.bincount(of_pair, weights=w, minlength=len(pair)) for w in (None, true))
    left = counts[ids] - own[of_pair]
    return np.where(left > 0, (sums[ids] - own_sums[of_pair]) / np.maximum(left, 1), true.mean())


def _correlation(said: np.ndarray, true: np.ndarray) -> float:
    """Pearson's; 0 where nothing is said."""
    if np.ptp(said) < 1e-12 or np.ptp(true) < 1e-12:
        return 0.0
    return float(np.corrcoef(said, true)[0, 1])


def _best_cut(said: np.ndarray, active: np.ndarray) -> float:
    """The size of prediction from which on "active" has the best F1."""
    size = np.abs(said)
    order = np.argsort(-size, kind="stable")
    f1 = 2 * active[order].cumsum() / (np.arange(1, len(order) + 1) + active.sum())
    last = np.append(np.diff(size[order]) < 0, True)  # of those with the same prediction
    return float(size[order][np.argmax(np.where(last, f1, -1))])


def _detected(said: np.ndarray, cut: float, active: np.ndarray) -> tuple[float, float]:
    """F1 and balanced accuracy of saying "active" from this size of prediction on."""
    yes = np.abs(said) >= cut
    hits = (yes & active).sum()
    f1 = 2 * hits / max(yes.sum() + active.sum(), 1)
    found, left_alone = hits / max(active.sum(), 1), (~yes & ~active).sum() / max((~active).sum(), 1)
    return float(f1), float((found + left_alone) / 2)


def shown(texts: Reading, place: int, around: int = 8) -> str:
    """A place in its text: the token between « and », with some tokens before and after."""
    text, pos = divmod(place, texts.texts.shape[1] - texts.skip)
    row, at = texts.texts[text], pos + texts.skip
    before, after = row[max(texts.skip, at - around) : at], row[at + 1 : at + 1 + around]
    return f"{texts.said(before)}«{texts.said(row[[at]])}»{texts.said(after)}".replace("\n", "↵")


def read_program(text: str) -> tuple[float, list[tuple[float, Predicate]]]:
    """The base and the terms of `str(program)`, such as "38.1 * token(' wine') + 0.2"."""
    base, terms = 0.0, []
    try:
        for term in _summands(ast.parse(text, mode="eval").body):
            if isinstance(term, ast.BinOp):
                terms.append((float(ast.literal_eval(term.left)), Predicate.of(ast.unparse(term.right))))
            else:
                base += float(ast.literal_eval(term))
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"{text!r:.80} is no sum of weights times predicates: {error}") from None
    return base, terms


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_summands(node.left), node.right]
    return [node]
