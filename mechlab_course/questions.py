"""Quizzes, predictions, and the numbers that the text claims."""

import math
import reprlib
import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any

from mechlab_course import exam, folders, progress, sealed
from mechlab_course.exercises import CORRECT, NOT_ATTEMPTED, NOT_YET, Outcome, boxed, concluded

_PREDICTIONS: dict[str, Any] = {}


@dataclass(frozen=True)
class Quiz:
    """A question of the text: the right letter, and for every letter why it is right or wrong.

    In an exam there is no right letter, and for every letter the choice itself.
    """

    right: str
    why: dict[str, str]


@dataclass(frozen=True)
class Form:
    """What a prediction looks like: one of some choices, or so many numbers within limits."""

    choices: tuple[str, ...] = ()
    lowest: float = -math.inf
    highest: float = math.inf
    whole: bool = False
    count: int = 1

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(repr(choice) for choice in self.choices)}"
        what = "whole number" if self.whole else "number"
        what = f"a {what}" if self.count == 1 else f"a list of {self.count} {what}s"
        return f"{what} from {self.lowest:g} to {self.highest:g}"

    def noted(self, guess: Any) -> Any:
        """The guess as it is noted; None if it has another form."""
        if self.choices:
            said = str(guess).strip().lower()
            same = [choice for choice in self.choices if choice.lower() == said]
            like = [choice for choice in self.choices if len(said) > 1 and said in choice.lower()]
            return next(iter(same or (like if len(like) == 1 else [])), None)
        values = [guess] if self.count == 1 else guess if isinstance(guess, (list, tuple)) else []
        return guess if len(values) == self.count and all(map(self._holds, values)) else None

    def _holds(self, value: Any) -> bool:
        try:
            number = float(value.strip().removesuffix("%") if isinstance(value, str) else value)
        except Exception:  # whatever it is, it is no number
            return False
        within = self.lowest <= number <= self.highest and not isinstance(value, bool)
        return within and (number.is_integer() or not self.whole)


def find_quiz(id: str) -> Quiz:
    """The question of this number; a `KeyError` if there is none."""
    return declared(id.partition(".")[0], Quiz)[id]


def declared(number: str, kind: type) -> dict[str, Any]:
    """The questions (`Quiz`) or the predictions (`Form`) of a notebook, by their ids."""
    return {id: each for id, each in _declared(number).items() if isinstance(each, kind)}


@cache
def _declared(number: str) -> dict[str, Quiz | Form]:
    """All that a notebook's `quizzes.toml` says."""
    found: dict[str, Quiz | Form] = {}
    for folder in folders.folders():
        if folder.name[:2] == number and (path := folder / "quizzes.toml").is_file():
            for id, said in tomllib.loads(sealed.read(path)).items():
                if "right" in said:
                    right = said.pop("right")
                    found[id] = Quiz(right, {letter: " ".join(text.split()) for letter, text in said.items()})
                else:
                    limits = {"lowest": said.pop("from", -math.inf), "highest": said.pop("to", math.inf)}
                    found[id] = Form(tuple(said.pop("choices", ())), **limits, **said)
    return found


def _unknown(id: Any, what: str, kind: type) -> str:
    """What is said of an id that no question or prediction has."""
    number = str(id).partition(".")[0]
    known = ", ".join(declared(number, kind))
    there = f"Those of notebook {number}: {known}." if known else "An id looks like 12.a or 12.p."
    return f"There is no {what} {id!r}. {there}"


def quiz(id: str, answer: Any = ...) -> Outcome:
    """Answer a multiple-choice question of the text with its letter: `quiz("01.a", "b")`.

    Every choice, right or wrong, is explained.
    """
    try:
        question = find_quiz(str(id))
    except KeyError:
        unknown = _unknown(id, "question", Quiz)
        return concluded(Outcome(str(id), NOT_YET, unknown, "Question"), recorded=False)
    letters = ", ".join(question.why)
    letter = str(answer).strip().lower()
    if not question.right:
        status, said = exam.asked(str(id), question.why, answer)
    elif answer is ...:
        status, said = NOT_ATTEMPTED, f"Write one of {letters} in place of the three dots."
    elif letter not in question.why:
        status, said = NOT_YET, f"There is no choice {answer!r}; the choices are {letters}."
    else:
        status, said = CORRECT if letter == question.right else NOT_YET, question.why[letter]
    return concluded(Outcome(str(id), status, said, "Question"))


class Note:
    """One sentence in a box."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return boxed(self.text, "#0072B2")


def predict(id: str, guess: Any = ..., *more: Any) -> Note:
    """Note what you expect before you measure it. There is no wrong prediction, only a surprise."""
    form = declared(str(id).partition(".")[0], Form).get(str(id))
    if form is None:
        return Note(_unknown(id, "prediction", Form))
    if guess is ...:
        return Note(f"No prediction yet: write {form} in place of the three dots, then run the cell again.")
    if more and form.count == 1:
        return Note(f"Not noted: a comma. Write {form}; a number has a point, such as 1.5.")
    noted = form.noted((guess, *more) if more else guess)
    if noted is None:
        return Note(f"Not noted: {reprlib.repr(guess)}. Write {form}, then run the cell again.")
    _PREDICTIONS[str(id)] = noted
    progress.record(str(id), "predicted", guess=str(noted))
    return Note(f"Noted: {noted}")


def reveal(id: str, measured: Any) -> Note:
    """Put a prediction beside what was measured, also one that was noted before the kernel was restarted."""
    if str(id) not in _PREDICTIONS:
        noted = [e for e in progress.entries() if (e["id"], e["status"]) == (str(id), "predicted")]
        if not noted:
            return Note(f"Measured: {measured}. (You noted no prediction.)")
        noted.sort(key=lambda e: str(e.get("time", "")))  # that of another machine may have been added below
        _PREDICTIONS[str(id)] = noted[-1].get("guess")
    return Note(f"You predicted: {_PREDICTIONS[str(id)]}. Measured: {measured}.")


def claim(model, what: str, value: float, *, says: float, within: float) -> None:
    """A number that the text quotes: on the model of the course it must agree, or the cell fails.

    On another model the line shows both numbers side by side, since the text speaks about SmolLM2.
    """
    from mechlab.loading.models import DEFAULT

    value = float(getattr(value, "detach", lambda: value)())  # a tensor with a gradient would warn
    said, measured = f"{round(says, 4):,}", _measured(value, within)
    if model.cfg.model_name == DEFAULT:
        if not abs(value - says) <= within:
            raise AssertionError(f"{what}: the text says {says} (± {within}), and here it is {value:.4g}.")
        print(f"{what}: {measured}, as the text says ({said})")
    else:
        print(f"{what}: {measured} here; the text says {said}, for SmolLM2")


def _measured(value: float, within: float) -> str:
    """A number with one digit more than a claim about it allows for, and without powers of ten."""
    places = max(0, 1 - math.floor(math.log10(within))) if within > 0 else 4
    places = 0 if value % 1 == 0 else min(places, 6)
    return f"{round(value, places) + 0.0:,.{places}f}"
