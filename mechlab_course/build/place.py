"""Which folder holds a learner's copies: the one they name, `work` here, or that of last time."""

from pathlib import Path

from mechlab_course import progress
from mechlab_course.build.copies import save
from mechlab_course.build.workspace import BASE


def work_folder(asked: Path | None) -> tuple[Path, str]:
    """The folder, and a sentence where there is a choice that the learner should know of."""
    if asked is not None:
        return asked.expanduser(), ""
    here, before = Path("work"), _of_last_time()
    if before is None or before == here.resolve():
        return here, ""
    if (here / BASE).is_dir():
        moved = "" if (before / BASE).is_dir() else ", and is not there now"
        return here, f"Last time it was {before}{moved}. Choose with --work."
    if (before / BASE).is_dir():
        return before, "It is the one of last time. For another: --work."
    return here, (
        f"Your copies were in {before} last time, and are not there now. "
        "If you have moved them, say where: --work FOLDER. "
        "Correct answers are kept apart too: `mechlab answers`."
    )


def remember(work: Path) -> None:
    """Note the folder for the next time; where that cannot be written, the next time asks again."""
    try:
        progress.path().parent.mkdir(parents=True, exist_ok=True)
        save(_note(), f"{work.resolve()}\n".encode())
    except OSError:
        return


def _note() -> Path:
    return progress.path().with_name("work_folder.txt")


def _of_last_time() -> Path | None:
    try:
        return Path(_note().read_text(encoding="utf-8").strip() or "work").resolve()
    except (OSError, ValueError):
        return None
