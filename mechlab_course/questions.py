"""Quizzes, predictions, and the numbers that the text claims."""

import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any

from mechlab_course import folders, progress
from mechlab_course.exercises import CORRECT, NOT_ATTEMPTED, NOT_YET, Outcome, boxed, concluded

_PREDICTIONS: dict[str, Any] = {}


@dataclass(frozen=True)
class Quiz:
    """A question of the text: the right letter, and for every letter why it is right or wrong."""

    right: str
    why: dict[str, str]


def find_quiz(id: str) -> Quiz:
    """The question of this number; a `KeyError` if there is none."""
    return _quizzes(id.partition(".")[0])[id]


@cache
def _quizzes(number: str) -> dict[str, Quiz]:
    """Those of a notebook's `quizzes.toml`."""
    found = {}
    for folder in folders.folders():
        if folder.name[:2] == number and (path := folder / "quizzes.toml").is_file():
            for id, said in tomllib.loads(path.read_text(encoding="utf-8")).items():
                why = {letter: " ".join(text.split()) for letter, text in said.items() if letter != "right"}
                found[id] = Quiz(said["right"], why)
    return found


def quiz(id: str, answer: Any = ...) -> Outcome:
    """Answer a multiple-choice question of the text with its letter: `quiz("01.a", "b")`.

    Every choice, right or wrong, is explained.
    """
    question = find_quiz(id)
    letters = ", ".join(question.why)
    letter = str(answer).strip().lower()
    if answer is ...:
        outcome = Outcome(
            id, NOT_ATTEMPTED, f"Write one of {letters} in place of the three dots.", "Question"
        )
    elif letter not in question.why:
        outcome = Outcome(
            id, NOT_YET, f"There is no choice {answer!r}; the choices are {letters}.", "Question"
        )
    else:
        status = CORRECT if letter == question.right else NOT_YET
        outcome = Outcome(id, status, question.why[letter], "Question")
    return concluded(outcome)


class Note:
    """One sentence in a box."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return boxed(self.text, "#0072B2")


def predict(id: str, guess: Any = ...) -> Note:
    """Note what you expect before you measure it. There is no wrong prediction, only a surprise."""
    if guess is ...:
        return Note("No prediction yet: write it in place of the three dots, then run the cell again.")
    _PREDICTIONS[str(id)] = guess
    progress.record(str(id), "predicted", guess=str(guess))
    return Note(f"Noted: {guess}")


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

    value = float(value)
    if model.cfg.model_name == DEFAULT:
        if not abs(value - says) <= within:
            raise AssertionError(f"{what}: the text says {says} (± {within}), and here it is {value:.4g}.")
        print(f"{what}: {value:.4g}, as the text says ({says})")
    else:
        print(f"{what}: {value:.4g} here; the text says {says}, for SmolLM2")
