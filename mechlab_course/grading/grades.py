"""What a grade is, and how verdicts about a learner's answers become the one that counts."""

from dataclasses import dataclass

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
RANK = [UNTRIED, STOPPED, NOT_YET, REVIEW, PARTLY, CORRECT]


@dataclass(frozen=True)
class Rules:
    """How answers become points. `partial` is the share for an answer that only the visible checks accept."""

    points: float = 1.0
    quiz_points: float = 0.0
    partial: float = 0.5
    seconds: float = 60.0
    memory: int = 2_000_000_000


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


def best_grades(
    tried: list[Answer], ids: list[str], results: dict[tuple, dict], rules: Rules
) -> dict[str, Grade]:
    """The best grade for each exercise."""
    best = {}
    for id in ids:
        options = [_grade(a, results.get((a.id, a.code, a.name)), rules) for a in tried if a.id == id]
        none = Grade(
            id, UNTRIED, 0.0, "No answer was found: the exercise is as it was handed out, or not there."
        )
        best[id] = max(options, key=lambda g: RANK.index(g.status), default=none)
    return best


def _grade(answer: Answer, result: dict | None, rules: Rules) -> Grade:
    if result is None:
        return Grade(answer.id, NOT_YET, 0.0, answer.problem, answer.where, code=answer.code)
    status, message, worth = result["status"], result["message"], rules.points
    further = result.get("further")
    if answer.kind == "quiz":
        worth = rules.quiz_points
    elif further and further["status"] != CORRECT:
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
