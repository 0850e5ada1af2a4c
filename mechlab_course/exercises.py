"""Exercises and their checks.

An exercise is one function, marked with its id: the id in the code survives moved cells, copies, and every
front end. `check(function)` has three outcomes, correct, not yet and not attempted, and never shows a
traceback of ours. Checkers live beside the notebook, in `course/NN_name/checks.py`; each tests properties
that any right answer has, and names the misconception behind a wrong one.
"""

import html
import inspect
import io
import os
import re
import reprlib
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

from mechlab_course import answers, folders, progress

CORRECT, NOT_YET, NOT_ATTEMPTED = "correct", "not yet", "not attempted"
RECORDED = "recorded"  # in an exam, where nothing is judged
_CHECKERS: dict[str, Callable] = {}


class NotYet(Exception):
    """A checker's verdict: the likely misconception, in one or two sentences for the learner."""


class NotAttempted(Exception):
    """The exercise still raises NotImplementedError."""


class Recorded(Exception):
    """It is an exam: the answer is there, and who hands it in is not told what it is worth."""


@dataclass(frozen=True)
class Outcome:
    """What a check found. `status` is "correct", "not yet", "not attempted", or in an exam "recorded"."""

    id: str
    status: str
    message: str
    what: str = "Exercise"

    def __repr__(self) -> str:
        return f"{self.what} {self.id}: {self.status}. {self.message}"

    def _repr_html_(self) -> str:
        colours = {CORRECT: "#009E73", NOT_YET: "#D55E00", NOT_ATTEMPTED: "#777777", RECORDED: "#0072B2"}
        colour = colours[self.status]
        return boxed(self.message, colour, f"{self.what} {self.id}: {self.status}.")


def boxed(text: str, colour: str, lead: str = "") -> str:
    """One line of HTML with a coloured edge. The words carry the meaning, the colour only repeats it."""
    lead = f"<strong>{html.escape(lead)}</strong> " if lead else ""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text)).replace("\n", "<br>")
    return f'<div role="status" style="border-left:6px solid {colour};padding:6px 12px">{lead}{text}</div>'


def exercise(id: str) -> Callable[[Callable], Callable]:
    """Mark a function as the answer to an exercise: `@exercise("12.1")`."""
    if callable(id):
        raise TypeError('Write the number of the exercise too: @exercise("12.1").')

    def mark(function: Callable) -> Callable:
        function.exercise_id = str(id)
        return function

    return mark


def checker(id: str) -> Callable[[Callable], Callable]:
    """Register the checker of an exercise. It gets the `Attempt`, then what the check cell passes by name.

    It raises `NotYet` with a misconception, or returns one sentence that says what held.
    """

    def register(function: Callable) -> Callable:
        _CHECKERS[id] = function
        return function

    return register


class Attempt:
    """A learner's function, called with care: inputs are copies, and errors become sentences."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        given = [
            a.clone() if isinstance(a, torch.Tensor) else list(a) if type(a) is list else a for a in args
        ]
        try:
            with torch.no_grad():
                result = self.function(*given)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: a learner's exit() must not end the kernel
            if isinstance(error, NotImplementedError) and _is_the_stub(error):
                raise NotAttempted from error
            raise NotYet(_explain(error, self.function, given)) from error
        for before, after in zip(args, given, strict=True):
            if (
                type(before) is list
                and not any(isinstance(x, torch.Tensor) for x in before)
                and before != after
            ):
                raise NotYet(
                    "Your function changes the list it was given. Work on a copy: `chosen = list(chosen)`."
                )
            if isinstance(before, torch.Tensor) and not torch.equal(before, after):
                raise NotYet(
                    "Your function changes the tensor it was given, in place. Whoever called it would find "
                    "other numbers afterwards. Work on a copy: `x = x.clone()`, or write `x = x + 1`, "
                    "not `x += 1`."
                )
        if result is None:
            raise NotYet("Your function returned None. Is the `return` missing?")
        return result

    def tensor(self, *args: Any, shape: tuple[int, ...], axes: str, whole: bool = False) -> torch.Tensor:
        """Call the function and insist on a finite tensor of this shape; `axes` names them in words.

        whole: whole numbers are wanted (token ids), not numbers with decimals.
        """
        result = self(*args)
        if shape == () and not whole and type(result) in (int, float):
            result = torch.tensor(float(result))  # a single number is one, in a tensor or not
        if not isinstance(result, torch.Tensor):
            raise NotYet(f"Your function returned a {type(result).__name__}; a tensor [{axes}] is needed.")
        if tuple(result.shape) != tuple(shape):
            raise NotYet(f"The shape is {tuple(result.shape)}; it should be {tuple(shape)}: [{axes}].")
        result = result.detach().cpu()
        if result.layout != torch.strided:
            result = result.to_dense()
        wanted = "whole numbers" if whole else "numbers with decimals (float)"
        if result.is_complex() or result.dtype == torch.bool or result.is_floating_point() == whole:
            raise NotYet(
                f"Your tensor holds {str(result.dtype).removeprefix('torch.')}; {wanted} are needed."
            )
        if not torch.isfinite(result).all():
            raise NotYet(
                "There are NaN or infinite values in your result. A row of only -inf? A division by 0?"
            )
        return result if whole else result.float()


def check(function: Callable, *positional: Any, **given: Any) -> Outcome:
    """Check an exercise: show what is right, or name the likely mistake. Never raises for a learner.

    With `MECHLAB_STRICT=1` (tests, solutions, grading) anything but "correct" raises an AssertionError.
    """
    id = getattr(function, "exercise_id", None)
    if id is None:
        text = 'Give `check` the function below the line `@exercise("...")`.'
        return concluded(Outcome("?", NOT_ATTEMPTED, text), recorded=False)
    with redirect_stdout(io.StringIO()) as printed:  # a check may call the function thousands of times
        outcome = run_checker(str(id), function, positional, given)
    _show_some(printed.getvalue().splitlines())
    return concluded(outcome, **(answers.to_keep(str(id), function) if outcome.status == CORRECT else {}))


def concluded(outcome: Outcome, recorded: bool = True, **kept: str) -> Outcome:
    """Note an outcome in the progress file, and, where checks are strict, raise for any but a correct one.

    kept: what else the file says, such as the source of a correct answer.
    """
    if recorded:
        progress.record(outcome.id, outcome.status, **kept)
    if os.environ.get("MECHLAB_STRICT") == "1" and outcome.status != CORRECT:
        raise AssertionError(repr(outcome))
    return outcome


def run_checker(id: str, function: Callable, positional: tuple, given: dict[str, Any]) -> Outcome:
    """Run the checker of an exercise and turn whatever happens into an `Outcome`."""
    checker = find_checker(id)
    if checker is None:
        return Outcome(
            id, NOT_ATTEMPTED, "There is no exercise of this number. Has the decorator been changed?"
        )
    wanted = [name for name in inspect.signature(checker).parameters if name != "attempt"]
    given = dict(zip(wanted, positional, strict=False)) | given
    # So far every name that a checker asks for is a model.
    missing = [name for name in wanted if not hasattr(given.get(name), "run_with_cache")]
    if missing:
        name = getattr(function, "__name__", "your_function")
        return Outcome(id, NOT_ATTEMPTED, f"Write `check({name}, {missing[0]}={missing[0]})`.")
    try:
        message = checker(Attempt(function), **{name: given[name] for name in wanted})
    except NotAttempted as verdict:
        hints = "Replace the line `raise NotImplementedError`; hints are folded below."
        return Outcome(id, NOT_ATTEMPTED, str(verdict) or hints)
    except Recorded:
        return Outcome(id, RECORDED, "Your teacher checks it. You may change it until you hand in.")
    except NotYet as verdict:
        return Outcome(id, NOT_YET, str(verdict))
    except Exception as error:  # an answer of a form that no checker thought of
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        text = f"Your function returned something this check cannot read ({reason}). "
        text += "Compare with the type after `->`."
        return Outcome(id, NOT_YET, text)
    return Outcome(id, CORRECT, message)


def _show_some(lines: list[str], limit: int = 20) -> None:
    """Print what the learner's function printed, as far as one can read it."""
    for line in lines[:limit]:
        print(line[:200])
    if len(lines) > limit:
        print(f"... and {len(lines) - limit} more lines printed by your function")


def find_checker(id: str) -> Callable | None:
    """The checker of an exercise; None if there is none of this number."""
    if id not in _CHECKERS:
        folders.checks(id.partition(".")[0])
    return _CHECKERS.get(id)


def all_ids() -> list[str]:
    """The ids of every exercise there is a checker for, in order."""
    for folder in folders.folders():
        folders.checks(folder.name[:2])
    return sorted(_CHECKERS)


def _is_the_stub(error: NotImplementedError) -> bool:
    """True for the line that learners replace, not for an operation that torch does not have."""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return line.startswith("raise") or not str(error)


_MEANS = {  # part of Python's or torch's message -> what it mostly means
    "with size 0|empty|no elements": "Something is empty on this input, and you take an entry of it.",
    "must be of type `str`": "The tokenizer reads text. Make text of it: `str(...)`.",
    "division by zero": "What you divide by is 0 on this input.",
    "out of bounds|out of range in self|list index out of range": "An index is larger than the axis that it "
    "counts on. Compare the order of your indices with the axes.",
    "Dimension out of range|too many indices": "The tensor has fewer axes than you count.",
    "size mismatch|cannot be multiplied|must match|match the (size|shape)|broadcast|is invalid for": "Two "
    "shapes do not fit each other. Rows for columns, an axis too few, or another order?",
    "unhashable": "A list cannot be a key: go through its entries one by one.",
    "cannot access local|referenced before": "This name gets its value in a branch or a loop that did not "
    "run on this input.",
    "same dtype|scalar type": "Two tensors hold numbers of different types: `.float()` or `.to(x.dtype)`.",
    "Boolean value of Tensor": "`if`, `and` and `or` ask one question; this tensor holds many. Compare entry "
    "by entry: `&`, `|`, `torch.where`.",
}


def _explain(error: BaseException, function: Callable, given: list) -> str:
    """The learner's error: what it means, the line of their own code, and the input on which it happened."""
    try:
        message = str(error)[:300]
    except Exception:  # an exception whose text cannot be made
        message = ""
    text = [f"Your function stopped with {type(error).__name__}: {message}"]
    if "does not require grad" in message:
        text.append("Checks run without gradients. Where you need them: `with torch.enable_grad():`.")
    text += [means for sign, means in _MEANS.items() if re.search(sign, message)][:1]
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    if code and frames and frames[-1].line and frames[-1].lineno >= code.co_firstlineno:
        line = f"in line {frames[-1].lineno - code.co_firstlineno + 1} of the function"
        text.append(f"It happened {line}: `{frames[-1].line.strip()}`")
    names = code.co_varnames if code else ()
    seen = [f"{name} = {_shown(value)}" for name, value in zip(names, given, strict=False) if _shown(value)]
    if seen:
        text.append(f"On this input: {', '.join(seen)}"[:400])
    return "\n".join(text)


def _shown(value: Any) -> str:
    """A short value as it is, a tensor by its shape; "" for models, functions and generators."""
    if isinstance(value, torch.Tensor) and (value.ndim > 1 or value.numel() > 8):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, torch.Tensor):
        value = [round(x, 3) if type(x) is float else x for x in value.flatten().tolist()]
    plain = isinstance(value, (int, float, str, list, tuple, dict))
    return reprlib.repr(value) if plain else ""
