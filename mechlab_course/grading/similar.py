"""Answers that are alike beyond what the task explains: hints for a person, never points.

Compared are statements, with names, annotations and docstrings taken out, and comments. What the notebooks
(their third hints too), the library or the checks say does not count, nor what many of the class have. A pair
is shown only with three rare things in common: short right answers coincide.
"""

import ast
import io
import math
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

from mechlab_course.folders import PACKAGES, ROOT
from mechlab_course.grading.grades import Graded
from mechlab_course.grading.submissions import cells

FEWEST, CLASS = 3, 8  # things in common; learners, of whom fewer tell nothing about what is rare
_SIZE, _WORDS = 14, 4  # nodes of a statement, words of a comment: smaller ones coincide
_FENCED = re.compile(r"(?ms)^```python\n(.*?)^```")


@dataclass(frozen=True)
class Pair:
    """Two learners, how rare what they share is (bits), and some of it with the exercises it stands in."""

    one: str
    other: str
    bits: float
    shared: list[tuple[str, str]]  # (exercise, what is shared)


def pairs(graded: Graded, ids: Iterable[str]) -> list[Pair]:
    """The pairs that share most, those first whose likeness is least common. Teams are one learner."""
    holders: dict[str, set[str]] = defaultdict(set)
    shown: dict[str, tuple[str, str]] = {}
    given = given_marks(frozenset(id[:2] for id in ids))
    names = {learner.team or learner.name for learner, _ in graded}
    for learner, grades in graded:
        for id, grade in grades.items():
            for mark, text in marks(grade.code):
                if mark not in given:
                    holders[mark].add(learner.team or learner.name)
                    shown.setdefault(mark, (id, text))
    most = max(2, math.ceil(len(names) / 8)) if len(names) >= CLASS else 0
    between: dict[tuple[str, str], list[str]] = defaultdict(list)
    for mark, who in holders.items():
        for both in combinations(sorted(who), 2) if 2 <= len(who) <= most else ():
            between[both].append(mark)
    bits = {mark: math.log2(len(names) / len(who)) for mark, who in holders.items()}
    found = [
        Pair(*both, sum(bits[mark] for mark in common), [shown[mark] for mark in common])
        for both, common in between.items()
        if len(common) >= FEWEST
    ]
    return sorted(found, key=lambda pair: (-pair.bits, pair.one, pair.other))


def marks(code: str) -> Iterator[tuple[str, str]]:
    """(what is compared, how it is shown) of each simple statement and comment of some size."""
    try:
        tree = ast.parse(code)
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return
    for token in tokens:
        words = re.findall(r"\w+", token.string.lower()) if token.type == tokenize.COMMENT else []
        if len(words) >= _WORDS:
            yield " ".join(words), token.string
    for node in ast.walk(tree):
        simple = isinstance(node, (ast.Assign, ast.AugAssign, ast.Return, ast.Expr))
        if simple and sum(1 for _ in ast.walk(node)) >= _SIZE:
            yield _bare(node), ast.unparse(node)[:200]


def _bare(node: ast.AST) -> str:
    """A statement without the names that its writer chose: what it is built of, in order."""
    seen: dict[str, int] = {}
    parts = []

    def visit(each: ast.AST) -> None:
        parts.append(type(each).__name__)
        if isinstance(each, (ast.Name, ast.arg)):
            name = each.id if isinstance(each, ast.Name) else each.arg
            parts.append(str(seen.setdefault(name, len(seen))))
        elif isinstance(each, ast.Attribute):
            parts.append(each.attr)
        elif isinstance(each, ast.Constant):
            parts.append(repr(each.value)[:50])
        for child in ast.iter_child_nodes(each):
            visit(child)
        parts.append(")")

    visit(node)
    return " ".join(parts)


@cache
def given_marks(numbers: frozenset[str]) -> set[str]:
    """What the course itself says: the library, the checks, these notebooks with their hints."""
    code = [path.read_text(encoding="utf-8") for path in _sources(numbers)]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        if path.name[:2] in numbers:
            data = path.read_bytes()
            code += [*cells(data), *_FENCED.findall("\n".join(cells(data, type="markdown")))]
    return {mark for text in code for mark, _ in marks(text)}


def _sources(numbers: frozenset[str]) -> list[Path]:
    checks = [p for p in (ROOT / "course").glob("*/checks.py") if p.parent.name[:2] in numbers]
    return sorted([*(PACKAGES / "mechlab").rglob("*.py"), *checks])
