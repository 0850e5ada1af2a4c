"""What makes it a course: exercises and their checks, quizzes, predictions, progress, and the build.

Techniques never import this package; notebooks do.
"""

from mechlab.course.exercises import check, exercise
from mechlab.course.questions import claim, predict, quiz, reveal

__all__ = ["check", "claim", "exercise", "predict", "quiz", "reveal"]
