"""What makes it a course: exercises and their checks, quizzes, predictions, progress, build, grading, site.

It imports `mechlab`, never the other way round. What belongs to one notebook lies in one folder, `course/NN_name/`:
its source, the checks of its exercises, and the answers that were tried on them.

exercises.py  an exercise, and what `check` says of an answer     questions.py  quizzes, predictions, claimed numbers
checking.py   what checks share, and where those of a notebook are  progress.py  what is solved
build/        notebooks from their sources    grading/  hand out, collect, grade    site/  the course as web pages
cli.py        the command `mechlab`           doctor.py what is wrong with this installation
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechlab_course.exercises import check, exercise
    from mechlab_course.progress import progress_table
    from mechlab_course.questions import claim, predict, quiz, reveal

__all__ = ["check", "claim", "exercise", "predict", "progress_table", "quiz", "reveal"]
_HOME = {"check": "exercises", "exercise": "exercises", "progress_table": "progress"}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"mechlab_course has no {name!r}. Names: {', '.join(__all__)}.")
    return getattr(import_module(f"mechlab_course.{_HOME.get(name, 'questions')}"), name)
