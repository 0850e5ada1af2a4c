"""An exam: answers are recorded and not judged, and each learner has the choices in an order of their own.

`mechlab release --exam` packs it: checks that only record, and questions without explanations. The order
comes from the name that the learner gives in the notebook; `mechlab grade` finds the name there, and turns
the letters back. It is no secret: it only keeps a letter from being of use to the neighbour.
"""

import ast
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from mechlab_course.exercises import NOT_ATTEMPTED, RECORDED, Attempt, NotAttempted, Recorded, checker

NAME_CELL = """\
# Your name, as the list of the class has it, between the quotes. Run this cell: questions need it.
from mechlab_course.exam import learner

learner("")"""
_TEXT = r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
_GIVEN = re.compile(rf"^learner\( *(?:name *= *)?({_TEXT}) *\)", re.MULTILINE)
_name = ""


def learner(name: str = "") -> None:
    """Say whose exam this is: the questions then show their choices."""
    global _name
    _name = " ".join(str(name).split())
    said = f"The answers below are those of {_name}."
    print(said if _name else "Write your name between the quotes, then run this cell again.")


def order(name: str, id: str, letters: Iterable[str]) -> dict[str, str]:
    """A learner's letters of a question, in order -> the letters that the course has for the same choices."""
    letters = sorted(letters)
    who = " ".join(unicodedata.normalize("NFC", name).split()).casefold()
    drawn = lambda letter: hashlib.sha256(f"{who}|{id}|{letter}".encode()).digest()
    return dict(zip(letters, sorted(letters, key=drawn), strict=True))


def name_in(texts: Iterable[str]) -> str | None:
    """The name given in the cells of a notebook, "" if there is none yet; None if it is no exam."""
    own = [text for text in texts if "mechlab_course.exam import learner" in text]
    names = [str(ast.literal_eval(given)) for text in own for given in _GIVEN.findall(text)]
    return (names[-1].strip() if names else "") if own else None


def records(*ids: str) -> None:
    """In place of the checks of these exercises: whatever the function does, it is recorded."""
    for id in ids:
        checker(id)(_record)


def _record(attempt: Attempt) -> str:
    code = getattr(attempt.function, "__code__", None)
    if code is not None and code.co_names == ("NotImplementedError",):  # as it was handed out
        raise NotAttempted("Write your answer in place of the line `raise NotImplementedError`.")
    raise Recorded


def asked(id: str, choices: dict[str, str], answer: Any) -> tuple[str, str]:
    """(status, what is said) of an answer to a question: the choice that it stands for, and no more."""
    if not _name:
        return (
            NOT_ATTEMPTED,
            "Write your name in the cell below the setup, and run it. Then run this one again.",
        )
    own = {letter: choices[meant] for letter, meant in order(_name, id, choices).items()}
    letter = str(answer).strip().lower()
    if letter in own:
        return RECORDED, f"{letter}: {own[letter]}"
    shown = "\n".join(f"{letter}: {text}" for letter, text in own.items())
    return NOT_ATTEMPTED, f"Write a letter in place of the three dots, and run this cell again.\n{shown}"
