"""The process that runs answers: started once with everything loaded, it forks a fresh child for each answer.

`python -m mechlab_course.grading.judge` reads jobs as lines of JSON and writes results likewise. Where there
is no fork (`--once`) it runs one job in itself and ends. The child confines itself, defines the answer, and
only then is told the word that makes a verdict valid, and the hidden checks.
"""

import _thread
import gc
import inspect
import json
import linecache
import os
import sys
import sysconfig
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

from mechlab_course import folders
from mechlab_course.grading import confine, watch
from mechlab_course.grading.supervisor import supervise, tell

FILE, HEAP = "<answer>", 1 << 9  # the flag of classes that were made in Python
NAMES: dict[str, Any] = {}  # what the setup cell defines


def readable() -> list[Path]:
    """What an answer may read: Python, its packages, the course's package and data, the model, no more."""
    import mechlab
    import mechlab_course
    from mechlab.loading.checkpoints import cache_dir
    from mechlab.reference import data_dir

    library, course = (Path(package.__file__).parent for package in (mechlab, mechlab_course))
    found = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [
        library,
        course,
        data_dir(),
        cache_dir(),
        Path("/usr/lib"),
        Path("/lib"),
        Path("/lib64"),
        Path("/usr/share/zoneinfo"),
    ]
    found += [
        Path("/proc/self"),
        Path("/proc/meminfo"),
        Path("/proc/cpuinfo"),
        Path("/sys/devices/system/cpu"),
    ]
    found += [
        folder / "checks.py" for folder in folders.folders()
    ]  # tracebacks through a check show its lines
    return [*found, Path("/etc/ld.so.cache"), Path("/dev/urandom"), Path.cwd()]


def load(ids: list[str], model: bool) -> None:
    """Import and build what answers need, so that each child has it; the model only if it is asked for."""
    import torch
    from jaxtyping import Float, Int

    import mechlab as ml
    import mechlab_course as course
    from mechlab_course.exercises import find_checker

    torch.set_num_threads(1)
    NAMES.update(torch=torch, Float=Float, Int=Int, Tensor=torch.Tensor, ml=ml, sys=sys, __name__="__main__")
    NAMES.update({name: getattr(course, name) for name in course.__all__})
    checkers = [checker for checker in map(find_checker, ids) if checker]
    if model or any("model" in inspect.signature(checker).parameters for checker in checkers):
        NAMES["model"] = ml.load(device="cpu", quiet=True)
    for kind in ("gqa", "gpt2"):
        with torch.no_grad():
            ml.tiny(kind).run_with_cache(torch.arange(5)[None])


def judge(job: dict, control, say: Callable[[dict], None], private: list[Path]) -> None:
    """Define the answer, check it, and tell what held. Runs in the child, beside foreign code."""
    from mechlab_course import exercises

    note = lambda what: say({"note": what})
    before, watcher = watch.snapshot(), watch.Watcher(FILE, readable(), private, note)
    linecache.cache[FILE] = (len(job["code"]), None, job["code"].splitlines(True), FILE)
    names, outcome, suspect = dict(NAMES), None, False

    def look() -> bool:
        changes = watch.changed(before) + ["leaves a thread running"] * (_thread._count() > 0)
        for change in changes:
            note(change)
        return bool(changes)

    watcher.start()
    try:
        exec(compile(job["code"], FILE, "exec", dont_inherit=True), names)
        function = _observed(names[job["name"]], note)
    except BaseException as error:
        text = f"The code around your answer stopped with {type(error).__name__}: {str(error)[:300]}"
        if isinstance(error, KeyError) and error.args == (job["name"],):
            text = f"Nothing is called `{job['name']}` when the notebook has run: is it in an `if` not taken?"
        outcome = exercises.Outcome(job["id"], exercises.NOT_YET, text)
    suspect |= look()
    say({"ready": True})
    told = json.loads(control.readline())
    if outcome is None:
        outcome = _check(job["id"], function)
        suspect |= look()
    result = {"word": told["word"], "status": outcome.status, "message": outcome.message[:5000]}
    if outcome.status == exercises.CORRECT and told["hidden"] and not suspect:
        further = {}
        for source in told["hidden"]:
            further |= hidden_checkers(source)
        if job["id"] in further:
            exercises._CHECKERS[job["id"]] = before["the checker of", job["id"]] = further[job["id"]]
            outcome = _check(job["id"], function)
            look()
            result["further"] = {"status": outcome.status, "message": outcome.message}
    sys.stdout.flush()
    say(result)


def _observed(function: Any, note: Callable[[str], None]) -> Any:
    """The function, and a look at what it returns: an object of its own class could answer any comparison."""
    import torch

    @wraps(function)
    def observed(*args, **given):
        result = function(*args, **given)
        parts = (
            list(result)
            if type(result) in (list, tuple)
            else list(result.values())
            if type(result) is dict
            else []
        )
        for part in [result, *parts[:1000]]:
            own = type(part).__module__ in ("__main__", "builtins") and type(part).__flags__ & HEAP
            if own or (
                isinstance(part, torch.Tensor) and type(part) not in (torch.Tensor, torch.nn.Parameter)
            ):
                note(f"returns an object of its own class, `{type(part).__name__}`")
        return result

    return observed


def _check(id: str, function: Any):
    from mechlab_course.exercises import run_checker

    return run_checker(id, function, (), {"model": NAMES["model"]} if "model" in NAMES else {})


def hidden_checkers(source: str) -> dict[str, Any]:
    """The checkers of a hidden module, in a registry of their own."""
    from mechlab_course import exercises

    held, exercises._CHECKERS = exercises._CHECKERS, {}
    try:
        exec(compile(source, "<hidden>", "exec"), {"__name__": "hidden"})
        return exercises._CHECKERS
    finally:
        exercises._CHECKERS = held


def child(job: dict, control: int, verdict: int, printed: int, private: list[Path]) -> None:
    """Become the process of one answer; never returns."""
    code = 1
    try:
        os.setsid()
        confine.die_with_parent()
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.environ.update(HOME=os.getcwd(), MECHLAB_HOME=os.getcwd(), TMPDIR=os.getcwd())
        confine.confine(job["seconds"], job["memory"], readable())
        with os.fdopen(control, "rb") as told:
            judge(job, told, lambda what: tell(verdict, what), private)
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}"[:500].encode(errors="replace"))
    finally:
        os._exit(code)


def quiz(job: dict) -> dict:
    """A question's answer, judged by the letter alone."""
    from mechlab_course.questions import find_quiz

    try:
        question = find_quiz(job["id"])
    except (KeyError, ImportError):
        return {"status": "not attempted", "message": "There is no question of this number."}
    letter = job["name"].strip().lower()
    if letter not in question.why:
        return {
            "status": "not yet",
            "message": f"There is no choice {letter!r}; the choices are {', '.join(question.why)}.",
        }
    return {"status": "correct" if letter == question.right else "not yet", "message": question.why[letter]}


def hidden_ids(sources: list[str]) -> list[str]:
    """The exercises these hidden modules check; raises when one cannot be loaded.

    Asked in a child, so that no hidden code stays here.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            tell(write, {"ids": sorted(id for source in sources for id in hidden_checkers(source))})
        except BaseException as error:
            tell(write, {"error": f"{type(error).__name__}: {error}"[:500]})
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        said = json.loads(told.readline() or b"{}")
    os.waitpid(pid, 0)
    if "ids" not in said:
        raise ValueError(f"a hidden check cannot be loaded ({said.get('error', 'it ended the process')})")
    return said["ids"]


def main() -> None:
    """Serve jobs until the input ends, in the empty folder it starts in. The first line says what to load."""
    sys.dont_write_bytecode = True
    confine.die_with_parent()
    jobs, results, quiet = os.fdopen(os.dup(0), "rb"), os.dup(1), os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1):
        os.dup2(quiet, handle)
    setting = json.loads(jobs.readline())
    private = [Path(path) for path in setting["private"]]
    try:
        load(setting["ids"], setting["model"])
        if "--once" not in sys.argv:
            hidden_ids(setting["hidden"])  # so that one that fails is told now
        tell(results, {"ready": True})
    except Exception as error:
        tell(results, {"ready": False, "message": f"{type(error).__name__}: {error}"})
        return
    gc.collect()
    gc.freeze()  # children do not touch, and so do not copy, what is loaded
    for line in jobs:
        job = json.loads(line)
        if job["kind"] == "quiz":
            tell(results, quiz(job))
        elif "--once" in sys.argv:
            if os.name == "posix":
                confine.confine(job["seconds"], job["memory"], readable())
            judge(job, jobs, lambda what: tell(results, what), private)
            os._exit(0)
        else:
            tell(results, supervise(job, [jobs.fileno(), results], partial(child, job, private=private)))


if __name__ == "__main__":
    main()
