"""What a teacher decides, in three files beside the table of grades that each run reads.

grading.toml    points by exercise, the rule for being late, answers in words and their rubrics
decisions.csv   learner, exercise, points, why: what a person gives, whatever the check said
teams.csv       team, learner: who gets one grade together

A key, an exercise, or a learner that is not known is refused by name: a misspelt line would be lost unseen.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from mechlab_course.grading.grades import DECIDED, Grade, Graded, GradingError, Late, Rules, Text
from mechlab_course.grading.submissions import Learner
from mechlab_course.grading.tables import number, rows_of

_NUMBERS = ("points", "quiz_points", "partial", "seconds", "memory")  # memory in GB
_TOP = (*_NUMBERS, "counts", "weights", "late", "texts")
_TEXT_ID = re.compile(r"\d\d\.[\w-]*\w")


@dataclass(frozen=True)
class Decision:
    """Points that a person gave, and why."""

    id: str
    points: float
    why: str


def rules_of(path: Path, course: dict[str, list[str]], given: dict[str, Any]) -> Rules:
    """The rules of `grading.toml`, if there is one; what is `given` on the command line comes before it."""
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GradingError(f"{path.name} cannot be read: {error}.") from None
    _known(said, _TOP, path.name, "key")
    numbers = {key: _amount(path.name, key, said[key]) for key in _NUMBERS if key in said}
    numbers |= {key: value for key, value in given.items() if value is not None}
    if "memory" in numbers:
        numbers["memory"] = int(numbers["memory"] * 1e9)
    counts = said.get("counts", "best")
    if counts not in ("best", "last"):
        raise GradingError(f'{path.name}: counts is "best" or "last", not {counts!r}.')
    known = [id for ids in course.values() for id in ids]
    notebooks = [stem[:2] for stem in course]
    weights = _section(path.name, said, "weights")
    _known(weights, [*known, *notebooks], f"{path.name}, weights", "exercise or notebook")
    if any(isinstance(each, dict) for each in weights.values()):
        raise GradingError(f'{path.name}, weights: write an exercise in quotation marks, "12.3" = 2.')
    weights = {id: _amount(path.name, f"the weight of {id}", each) for id, each in weights.items()}
    texts = {
        id: _text(f"{path.name}, texts", id, each, known, notebooks)
        for id, each in _section(path.name, said, "texts").items()
    }
    late = _late(f"{path.name}, late", _section(path.name, said, "late")) if "late" in said else None
    return Rules(**numbers, counts=counts, weights=weights, texts=texts, late=late)


def _known(said: Iterable[str], known: Iterable[str], where: str, what: str) -> None:
    """Refuse what is not known, with what is most like it."""
    known = list(dict.fromkeys(known))
    for each in said:
        if each not in known:
            like = difflib.get_close_matches(each, known, 1, 0.5)
            hint = f"Did you mean {like[0]!r}?" if like else f"Known: {', '.join(known[:20])}."
            raise GradingError(f"{where}: there is no {what} {each!r}. {hint}")


def _section(file: str, said: dict, name: str) -> dict:
    part = said.get(name, {})
    if not isinstance(part, dict):
        raise GradingError(f"{file}: {name} is a table; begin it with a line [{name}].")
    return part


def _amount(where: str, what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise GradingError(f"{where}: {what} is a number from 0 on, not {value!r}.")
    return float(value)


def _text(where: str, id: str, said: Any, known: list[str], notebooks: list[str]) -> Text:
    if id in known or not _TEXT_ID.fullmatch(id) or id[:2] not in notebooks:
        raise GradingError(f'{where}: {id!r} needs the number of a notebook and a new name, like "43.essay".')
    if not isinstance(said, dict):
        raise GradingError(f'{where}: begin {id} with a line [texts."{id}"].')
    _known(said, ("title", "points", "rubric"), f"{where}, {id}", "key")
    rubric = said.get("rubric", [])
    if not isinstance(rubric, list) or not all(isinstance(line, str) for line in rubric):
        raise GradingError(f"{where}, {id}: rubric is a list of sentences.")
    points = _amount(f"{where}, {id}", "points", said.get("points", 1))
    return Text(str(said.get("title", "In words")), points, tuple(rubric))


def _late(where: str, said: dict) -> Late:
    _known(said, ("deadline", "per_day", "handed_in", "extra_days"), where, "key")
    if not {"deadline", "per_day"} <= said.keys():
        raise GradingError(f"{where}: it needs a deadline and per_day, the per cent that a day costs.")
    times = {name: _moment(where, each) for name, each in _section(where, said, "handed_in").items()}
    extra = _section(where, said, "extra_days")
    extra = {name: int(_amount(where, f"the days of {name}", each)) for name, each in extra.items()}
    return Late(_moment(where, said["deadline"]), _amount(where, "per_day", said["per_day"]), times, extra)


def _moment(where: str, value: Any) -> datetime:
    """A day ends at midnight. A time is that of the place where the sheets were made."""
    if isinstance(value, datetime) and value.tzinfo is None:
        return value
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time(23, 59, 59))
    raise GradingError(
        f"{where}: write a day as 2026-12-01 or a time as 2026-12-01T18:00:00, without quotes, not {value!r}."
    )


class Roll:
    """The learners, found by name, by their number in a learning system, or by their team."""

    def __init__(self, learners: Iterable[Learner]):
        self._meant: dict[str, list[Learner]] = {}
        for learner in learners:
            names = {learner.name, learner.team, learner.key.id if learner.key else ""}
            for name in names - {""}:
                self._meant.setdefault(name, []).append(learner)

    def __contains__(self, name: str) -> bool:
        return name in self._meant

    def find(self, name: str, where: str) -> list[Learner]:
        """Whom a line means; refused if it is nobody."""
        _known([name], self._meant, where, "learner")
        return self._meant[name]


def with_teams(learners: list[Learner], path: Path, say) -> list[Learner]:
    """The class with each team's answers given to all of its members, and those who handed in nothing too."""
    if not path.is_file():
        return learners
    roll, teams, seen = Roll(learners), {}, {}
    for line, row in enumerate(rows_of(path, ("team", "learner")), 2):
        team, name = row["team"], row["learner"]
        if not team or not name:
            raise GradingError(f"{path.name}, line {line}: both team and learner are needed.")
        if name in roll and len(meant := roll.find(name, path.name)) == 1:
            name = meant[0].name
        if name in seen:
            raise GradingError(f"{path.name}, line {line}: {name} is in {seen[name]} already.")
        seen[name] = team
        teams.setdefault(team, []).append(name)
    by_name = {learner.name: learner for learner in learners}
    for team, names in teams.items():
        present = [by_name[name] for name in names if name in by_name]
        if not present:
            raise GradingError(f"{path.name}: nobody of {team} handed anything in ({', '.join(names)}).")
        answers = [answer for member in present for answer in member.answers]
        for name in names:
            if name not in by_name:
                say(f"{name} of {team} handed in nothing and gets the team's grade.")
            own = by_name.get(name, Learner(name))
            by_name[name] = replace(own, team=team, answers=answers, days_late=0)
    return sorted(by_name.values(), key=lambda learner: (learner.name.casefold(), learner.name))


def set_days_late(learners: list[Learner], late: Late, times: dict[str, datetime]) -> None:
    """How many days each is late; in a team the latest of its members counts.

    times: when they handed in, by their numbers in a learning system. One day is counted for a learner of
    whom it is only known that they were late.
    """
    roll, where = Roll(learners), "grading.toml, late"
    said = {one.name: when for name, when in late.handed_in.items() for one in roll.find(name, where)}
    granted = {one.name: days for name, days in late.extra_days.items() for one in roll.find(name, where)}
    for learner in learners:
        when = said.get(learner.name, times.get(learner.key.id) if learner.key else None)
        over = (when - late.deadline).total_seconds() / 86400 if when else learner.is_flagged
        learner.days_late = max(0, math.ceil(over) - granted.get(learner.name, 0))
    for learner in learners:
        mates = [one.days_late for one in learners if one.team and one.team == learner.team]
        learner.days_late = max(mates, default=learner.days_late)


def decisions_of(
    path: Path, learners: list[Learner], course: dict[str, list[str]], rules: Rules
) -> dict[str, list[Decision]]:
    """What a person decided, by the learner's name; a line without points is still open."""
    found: dict[str, list[Decision]] = {}
    if not path.is_file():
        return found
    roll, known = Roll(learners), [*(id for ids in course.values() for id in ids), *rules.texts]
    for line, row in enumerate(rows_of(path, ("learner", "exercise", "points")), 2):
        where = f"{path.name}, line {line}"
        if not row["points"]:
            continue
        points, id = number(row["points"]), row["exercise"].split(" ")[0]  # its title may follow
        _known([id], known, where, "exercise")
        if points is None or points < 0:
            raise GradingError(f"{where}: points is a number from 0 on, not {row['points']!r}.")
        if points > rules.worth(id):
            raise GradingError(f"{where}: {points:g} points, but {id} is worth {rules.worth(id):g}.")
        for learner in roll.find(row["learner"], where):
            own = found.setdefault(learner.name, [])
            if any(each.id == id for each in own):
                raise GradingError(f"{where}: a second decision about {id} of {learner.name}.")
            own.append(Decision(id, points, row.get("why", "")))
    return found


def decided(graded: Graded, decisions: dict[str, list[Decision]]) -> Graded:
    """The grades with what a person decided in its place."""
    for learner, grades in graded:
        for each in decisions.get(learner.name, []):
            if old := grades.get(each.id):
                grades[each.id] = _after(old, each)
    return graded


def _after(old: Grade, decision: Decision) -> Grade:
    why = f"A person decided. {decision.why}".strip()
    before = f"Before: {old.status}. {old.message}"
    return replace(old, status=DECIDED, points=decision.points, message=f"{why}\n{before}")
