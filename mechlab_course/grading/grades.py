"""What a grade is, and how verdicts about a learner's answers become the one that counts."""

from dataclasses import dataclass, field
from datetime import datetime

from mechlab_course.grading.answers import Answer
from mechlab_course.grading.submissions import Learner
from mechlab_course.grading.suspicion import suspicious

CORRECT, PARTLY, REVIEW, NOT_YET, STOPPED, UNTRIED = (
    "correct",
    "partly",
    "review",
    "not yet",
    "stopped",
    "not attempted",
)
TO_READ, DECIDED = "to read", "decided"  # by a person
RANK = [UNTRIED, TO_READ, STOPPED, NOT_YET, REVIEW, PARTLY, CORRECT]
NONE = "No answer was found: the exercise is as it was handed out, or not there."


class GradingError(ValueError):
    """What is asked cannot be done; the text says why."""


@dataclass(frozen=True)
class Text:
    """An answer in words, which a person reads: what it is called, its points, what they are given for."""

    title: str
    points: float
    rubric: tuple[str, ...] = ()


@dataclass(frozen=True)
class Late:
    """What a day late costs: per cent of all points, for each day begun, as long as there are any.

    handed_in: when, of learners whose time no sheet tells. extra_days: granted to a learner.
    """

    deadline: datetime
    per_day: float
    handed_in: dict[str, datetime] = field(default_factory=dict)
    extra_days: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """How answers become points. `partial` is the share for an answer that only the visible checks accept.

    weights: points of single exercises and questions, or of each exercise of a notebook ("12").
    counts: which of several versions does, the "best" or the "last".
    """

    points: float = 1.0
    quiz_points: float = 0.0
    partial: float = 0.5
    seconds: float = 60.0
    memory: int = 2_000_000_000
    counts: str = "best"
    weights: dict[str, float] = field(default_factory=dict)
    late: Late | None = None
    texts: dict[str, Text] = field(default_factory=dict)

    def worth(self, id: str) -> float:
        """The most that an answer can earn."""
        if id in self.texts:
            return self.texts[id].points
        if is_quiz(id):
            return self.weights.get(id, self.quiz_points)
        return self.weights.get(id, self.weights.get(id[:2], self.points))


@dataclass(frozen=True)
class Grade:
    """What one learner gets for one exercise, and why."""

    id: str
    status: str
    points: float
    message: str
    where: str = ""
    printed: str = ""
    code: str = ""


Graded = list[tuple[Learner, dict[str, Grade]]]


def is_quiz(id: str) -> bool:
    """Whether this is a question's number, such as 12.a."""
    return not id.rpartition(".")[2].isdigit()


@dataclass(frozen=True)
class Gradebook:
    """The grades of a class, the numbers of what counts, the rules, and what each exercise is called."""

    graded: Graded
    ids: list[str]
    rules: Rules
    titles: dict[str, str] = field(default_factory=dict)

    @property
    def out_of(self) -> float:
        """The most that a learner can have."""
        return sum(map(self.rules.worth, self.ids))

    def total(self, learner: Learner, grades: dict[str, Grade]) -> float:
        """All points, less what being late costs."""
        return sum(grade.points for grade in grades.values()) * (1 - self.cost(learner))

    def cost(self, learner: Learner) -> float:
        """The share of the points that being late costs."""
        return min(1.0, self.rules.late.per_day * learner.days_late / 100) if self.rules.late else 0.0

    def named(self, id: str) -> str:
        """An exercise with its title, if it has one."""
        return f"{id} {self.titles.get(id, '')}".strip()


def best_grades(
    tried: list[Answer], ids: list[str], results: dict[tuple, dict], rules: Rules
) -> dict[str, Grade]:
    """The grade that counts for each exercise: of the best version, or of the last one."""
    best = {}
    for id in ids:
        options = [_grade(a, results.get((a.id, a.code, a.name)), rules) for a in tried if a.id == id]
        if rules.counts == "last":  # one version may have been read in two ways
            options = [g for g in options if g.where == options[-1].where]
        best[id] = max(options, key=lambda g: RANK.index(g.status), default=Grade(id, UNTRIED, 0.0, NONE))
    return best


def _grade(answer: Answer, result: dict | None, rules: Rules) -> Grade:
    if answer.kind == "text":
        rubric = rules.texts[answer.id].rubric
        said = "\n- ".join(["A person reads this answer." + " What counts:" * bool(rubric), *rubric])
        return Grade(answer.id, TO_READ, 0.0, said, answer.where, code=answer.code)
    if result is None:
        return Grade(answer.id, NOT_YET, 0.0, answer.problem, answer.where, code=answer.code)
    status, message, worth = result["status"], result["message"], rules.worth(answer.id)
    further = result.get("further")
    if answer.kind != "quiz" and further and further["status"] != CORRECT:
        status, message = PARTLY, f"Right by the check you have. A further one says: {further['message']}"
    if status in (NOT_YET, STOPPED) and answer.missing:
        message = "\n".join([message, *answer.missing])
    flags = list(dict.fromkeys([*suspicious(answer.code), *result["flags"]]))
    if flags and status != UNTRIED:
        why = f"A person will look at this answer before it counts: it {'; it '.join(flags[:5])}."
        message = f"{why}\nThe check says: {status}. {message}"
        status = REVIEW
    points = {CORRECT: worth, PARTLY: worth * rules.partial}.get(status, 0.0)
    return Grade(answer.id, status, points, message, answer.where, result["printed"], answer.code)
