"""Grade what learners handed in: from files to a grade for each exercise, by the best answer."""

import hashlib
import importlib.metadata
import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from mechlab_course import folders
from mechlab_course.folders import ROOT, sources
from mechlab_course.grading import confine, report
from mechlab_course.grading.answers import Answer, find
from mechlab_course.grading.grades import Graded, Rules, best_grades
from mechlab_course.grading.sandbox import FORKS, Sandbox
from mechlab_course.grading.submissions import Learner, cells, collect

COPIES = 5  # versions of one exercise that are tried for one learner, the last ones


class GradingError(ValueError):
    """What is asked cannot be done; the text says why."""


def course_ids() -> dict[str, list[str]]:
    """The exercises and questions of each notebook of the course, in order, by the notebook's name."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        found[path.stem] = list(dict.fromkeys(a.id for a in find(cells(path.read_bytes()), path.name)))
    return found


def grade(
    folder: Path,
    out: Path,
    *,
    only: list[str] | None = None,
    hidden: Path | None = None,
    rules: Rules | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = print,
    forks: bool = FORKS,
) -> Graded:
    """Grade every submission in `folder` and write `out`, `feedback/` and `summary.html` beside it.

    only: numbers of notebooks; by default those of which an answer was handed in. Results are kept beside
    `out` and used again, unless `fresh`, so that an interrupted run goes on where it stopped.
    """
    rules = rules or Rules()
    private = _private(folder, out, hidden)
    course = course_ids()
    learners = collect(folder, list(course))
    handed_in = {a.id[:2] for learner in learners for a in learner.answers}
    numbers = [stem[:2] for stem in course if stem[:2] in (only or handed_in)]
    ids = [id for stem in course for id in course[stem] if id[:2] in numbers]
    if not ids:
        raise GradingError(
            f"{folder} holds no answer to an exercise of the course{' asked for' if only else ''}."
        )
    say(f"{len(learners)} learners; notebooks {', '.join(numbers)}, {len(ids)} exercises and questions.")
    held = confine.protections()
    say("On this machine: " + ("; ".join(held.values()) or "only time is limited") + ".")
    if len(held) < 3:
        say(
            "That does not hold a hostile answer in: "
            "grade in a container, or as a user who owns nothing else."
        )
    further = {number: hidden_sources(number, hidden) for number in numbers}
    tried = {learner.name: _tried(learner, ids) for learner in learners}
    jobs = [a for answers in tried.values() for a in answers if not a.problem and not a.stub]
    out.parent.mkdir(parents=True, exist_ok=True)
    results = _results(
        jobs, further, out.parent / ".mechlab-grading.jsonl", rules, fresh, private, say, forks
    )
    graded = [(learner, best_grades(tried[learner.name], ids, results, rules)) for learner in learners]
    report.write(graded, ids, out, rules)
    return graded


def hidden_sources(number: str, folder: Path | None) -> list[str]:
    """The hidden checks of a notebook: `nbNN.py` in the teacher's folder, and hidden cells of its source."""
    found = []
    if folder and (path := folder / f"nb{number}.py").is_file():
        found.append(path.read_text(encoding="utf-8"))
    for name, path in sources().items():
        if name[:2] == number and 'kind="hidden"' in path.read_text(encoding="utf-8"):
            from mechlab_course.build.sources import read

            found += ["\n".join(cell.source for cell in read(path) if cell.kind == "hidden")]
    return found


def _private(folder: Path, out: Path, hidden: Path | None) -> list[Path]:
    """What no answer may read; refuses a place where that could not be kept."""
    if not folder.is_dir():
        raise GradingError(f"There is no folder {folder}.")
    if hidden and not hidden.is_dir():
        raise GradingError(f"There is no folder {hidden} of hidden checks.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise GradingError(
            f"Write the grades outside {folder}: the next run would take them for a submission."
        )
    open_to_all = [
        ROOT / "mechlab",
        ROOT / "mechlab_course",
        ROOT / "data",
        Path(sysconfig.get_path("purelib")),
    ]
    for path in (folder, *([hidden] if hidden else [])):
        if any(path.resolve().is_relative_to(place.resolve()) for place in open_to_all):
            raise GradingError(
                f"Move {path} elsewhere: answers may read the course's own folders, and so this one."
            )
    kept = [
        folder,
        out,
        out.parent / "feedback",
        out.parent / ".mechlab-grading.jsonl",
        *sources().values(),
        *folders.tried().values(),
        ROOT / "solutions",
        ROOT / "tests",
    ]
    return [path.resolve() for path in (*kept, *([hidden] if hidden else []))]


def _tried(learner: Learner, ids: list[str]) -> list[Answer]:
    """The answers that count: of an exercise the last few different ones, of a question the last one."""
    chosen = []
    for id in ids:
        all_given = [a for a in learner.answers if a.id == id and not a.stub]
        if all_given and all_given[0].kind == "quiz":
            chosen += all_given[-1:]
            continue
        last = {(a.code, a.name, a.problem): a for a in reversed(all_given)}  # each once, where it came last
        given = [*last.values()][::-1]
        whole = [a for a in given if not a.problem]
        if len(whole) > COPIES:
            learner.problems.append(f"{id}: {len(whole)} different answers; the last {COPIES} were tried.")
        chosen += [a for a in given if a.problem][-COPIES:] + whole[-COPIES:]
    return chosen


def _results(jobs, further, kept: Path, rules: Rules, fresh: bool, private, say, forks) -> dict[tuple, dict]:
    """A result for each different answer: from an earlier run, or from the sandbox and noted at once."""
    version = _version()
    limits = [float(rules.seconds), int(rules.memory), forks]
    key = lambda a: hashlib.sha256(
        json.dumps([a.id, a.code, a.name, version, limits, further[a.id[:2]]]).encode()
    ).hexdigest()
    known = {} if fresh else dict(_kept(kept))
    todo = {key(a): a for a in jobs if key(a) not in known}
    say(f"{len({key(a) for a in jobs})} different answers, {len(todo)} of them new.")
    if todo:
        sources = [source for notebook in further.values() for source in notebook]
        model = any("model" in a.code for a in todo.values())
        with Sandbox([a.id for a in todo.values()], model, sources, private, forks) as sandbox:
            with kept.open("w" if fresh else "a", encoding="utf-8") as file:
                for number, (name, answer) in enumerate(todo.items(), 1):
                    job = {"kind": answer.kind, "id": answer.id, "code": answer.code, "name": answer.name}
                    job |= {
                        "seconds": rules.seconds,
                        "memory": rules.memory,
                        "hidden": further[answer.id[:2]],
                    }
                    known[name] = sandbox.ask(job)
                    file.write(json.dumps({"key": name, "result": known[name]}) + "\n")
                    file.flush()
                    if number % 50 == 0:
                        say(f"{number} of {len(todo)} answers checked.")
    return {(a.id, a.code, a.name): known[key(a)] for a in jobs}


def _kept(path: Path) -> Iterator[tuple[str, dict]]:
    """Results of earlier runs; a line that was cut off is as if it were not there."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            yield entry["key"], {"flags": [], "printed": ""} | entry["result"]
        except (ValueError, KeyError, TypeError):
            continue


def _version() -> str:
    """Changes when the course's code or torch does: then every answer is checked again."""
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    code = [*(ROOT / "mechlab").rglob("*.py"), *(ROOT / "mechlab_course").rglob("*.py")]
    for path in sorted([*code, *(ROOT / "course").glob("*/checks.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
