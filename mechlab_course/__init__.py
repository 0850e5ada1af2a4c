"""What makes it a course: exercises and their checks, quizzes, predictions, progress, build, grading, site.

It imports `mechlab`, never the other way round. What belongs to one notebook lies in one folder,
`course/NN_name/`: its source, the checks of its exercises, and the answers that were tried on them.

folders.py    where the folders of the notebooks are
cells.py      what a code cell answers, read from its code
exercises.py  an exercise, and what `check` says of an answer
checking.py   what the checks of all notebooks share
answers.py    correct answers, kept
questions.py  quizzes, predictions, claimed numbers
exam.py       the same where answers are only recorded    sealed.py  not to be read by accident
progress.py   the file that says what is solved    overview.py  the table that is made of it
build/        notebooks from their sources, and learners' copies of them
grading/      hand out, collect, grade
site/         the course as web pages
restarted.py  what a NameError after a restart says    startup.py  what kernels of `mechlab lab` run first
pulse.py      a cell that computes for long says so
cli.py        the command `mechlab`    console.py  what commands say    doctor.py  what is wrong here
"""

from importlib import import_module
from typing import TYPE_CHECKING

import mechlab

if "load" not in getattr(mechlab, "__all__", ()):
    raise ImportError(
        f"The package `mechlab` in {mechlab.__file__} is not this course's: on the package index, somebody "
        "else has that name. Run `pip uninstall -y mechlab`, then "
        "`pip install --force-reinstall --no-deps mechlab-course`, and restart the kernel."
    )

from mechlab_course import pulse, restarted

if TYPE_CHECKING:
    from mechlab_course.exercises import check, exercise
    from mechlab_course.overview import progress_table
    from mechlab_course.questions import claim, predict, quiz, reveal

__all__ = ["check", "claim", "exercise", "predict", "progress_table", "quiz", "reveal"]
_HOME = {"check": "exercises", "exercise": "exercises", "progress_table": "overview"}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"mechlab_course has no {name!r}. Names: {', '.join(__all__)}.")
    return getattr(import_module(f"mechlab_course.{_HOME.get(name, 'questions')}"), name)


restarted.watch()
pulse.watch()
