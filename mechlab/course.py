"""What the course is called since it has a package of its own, for notebooks that still say
`mechlab.course`."""

from mechlab_course import check, claim, exercise, predict, progress_table, quiz, reveal

__all__ = ["check", "claim", "exercise", "predict", "progress_table", "quiz", "reveal"]
