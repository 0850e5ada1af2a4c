"""A result for each different answer: from an earlier run, or from sandboxes, several at once."""

import hashlib
import importlib.metadata
import json
import os
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from mechlab_course.folders import PACKAGES, ROOT
from mechlab_course.grading.answers import Answer
from mechlab_course.grading.grades import Rules
from mechlab_course.grading.sandbox import FORKS, Sandbox

Queue = queue.SimpleQueue


@dataclass(frozen=True)
class Setting:
    """How answers are judged: their limits, the hidden checks by notebook, what none of them may read.

    jobs: how many sandboxes work at once.
    """

    rules: Rules
    further: dict[str, list[str]]
    private: list[Path]
    jobs: int = 1
    forks: bool = FORKS

    def key(self, answer: Answer) -> str:
        """Of answers with the same key the result is the same."""
        limits = [float(self.rules.seconds), int(self.rules.memory), self.forks]
        said = [answer.id, answer.code, answer.name, self.version, limits, self.further[answer.id[:2]]]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @cached_property
    def version(self) -> str:
        """Changes when the course's code or torch does: then every answer is checked again."""
        digest = hashlib.sha256(importlib.metadata.version("torch").encode())
        code = [*(PACKAGES / "mechlab").rglob("*.py"), *(PACKAGES / "mechlab_course").rglob("*.py")]
        for path in sorted([*code, *(ROOT / "course").glob("*/checks.py")]):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def job(self, answer: Answer) -> dict:
        """What a sandbox is asked."""
        job = {"kind": answer.kind, "id": answer.id, "code": answer.code, "name": answer.name}
        limits = {"seconds": self.rules.seconds, "memory": self.rules.memory}
        return job | limits | {"hidden": self.further[answer.id[:2]]}


def results_of(
    answers: list[Answer], kept: Path, setting: Setting, fresh: bool, say: Callable[[str], None]
) -> dict[tuple, dict]:
    """The results by (id, code, name). New ones are noted in `kept` at once, so that none is lost."""
    known = {} if fresh else dict(_kept(kept))
    keys = [setting.key(answer) for answer in answers]
    todo = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in known}
    say(f"{len(set(keys))} different answers, {len(todo)} of them new.")
    if todo:
        with kept.open("w" if fresh else "a", encoding="utf-8") as file:
            for number, (key, result) in enumerate(_asked(todo, setting), 1):
                known[key] = result
                file.write(json.dumps({"key": key, "result": result}) + "\n")
                file.flush()
                if number % 50 == 0:
                    say(f"{number} of {len(todo)} answers checked.")
    return {(a.id, a.code, a.name): known[key] for key, a in zip(keys, answers, strict=True)}


def _asked(todo: dict[str, Answer], setting: Setting) -> Iterator[tuple[str, dict]]:
    """(key, result) of each, as they come."""
    waiting, done = Queue(), Queue()
    for item in todo.items():
        waiting.put(item)
    ids = [answer.id for answer in todo.values()]
    sources = [source for notebook in setting.further.values() for source in notebook]
    model = any("model" in answer.code for answer in todo.values())
    make = partial(Sandbox, ids, model, sources, setting.private, setting.forks)
    working = max(1, min(setting.jobs, len(todo), os.cpu_count() or 1))
    with ThreadPoolExecutor(working) as pool:
        for _ in range(working):
            pool.submit(_work, make, setting, waiting, done)
        try:
            while working:
                said = done.get()
                if isinstance(said, BaseException):
                    raise said
                if said:
                    yield said
                working -= said is None
        finally:  # after an error, or Ctrl-C, nobody begins another answer
            while _next(waiting):
                pass


def _work(make: Callable[[], Sandbox], setting: Setting, waiting: Queue, done: Queue) -> None:
    """Ask what waits, one after the other; None, or what went wrong, is the last that is done.

    The sandbox lives and ends in this thread: it dies with the one that started it.
    """
    try:
        with make() as sandbox:
            while item := _next(waiting):
                done.put((item[0], sandbox.ask(setting.job(item[1]))))
        done.put(None)
    except BaseException as error:
        done.put(error)


def _next(waiting: Queue) -> tuple[str, Answer] | None:
    try:
        return waiting.get_nowait()
    except queue.Empty:
        return None


def _kept(path: Path) -> Iterator[tuple[str, dict]]:
    """Results of earlier runs; a line that was cut off is as if it were not there."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            yield entry["key"], {"flags": [], "printed": ""} | entry["result"]
        except (ValueError, KeyError, TypeError):
            continue
