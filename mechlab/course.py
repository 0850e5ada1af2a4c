"""The course under its old name, for notebooks that still say `mechlab.course`.

It has a package of its own, `mechlab_course`.
"""

from mechlab_course import check, claim, exercise, predict, progress_table, quiz, reveal

__all__ = ["check", "claim", "exercise", "predict", "progress_table", "quiz", "reveal"]
