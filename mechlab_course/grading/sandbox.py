"""Run answers one by one in a process of their own, and bring back a verdict whatever happens there.

The grader itself never imports an answer, nor torch. On Linux a server (`judge`) has everything loaded and
forks for each answer; elsewhere each answer gets a fresh Python, which costs its start-up.
"""

import json
import os
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from mechlab_course.grading import confine, supervisor

START_UP = 180  # seconds that imports and the model may take
GRACE = 30  # seconds beyond an answer's own limit before the server itself counts as lost
FORKS = confine.LINUX
KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "CONDA_PREFIX",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
    "HF_HOME",
)
KEPT += ("SYSTEMROOT", "SYSTEMDRIVE", "USERPROFILE", "LOCALAPPDATA", "APPDATA", "TEMP", "TMP", "TMPDIR")
KEPT += ("MECHLAB_CACHE", "MECHLAB_MODEL", "MECHLAB_DATA")  # and so no keys or tokens of the teacher


class SandboxError(RuntimeError):
    """Nothing can be graded; the text says why."""


class Sandbox:
    """Judge answers: `with Sandbox(...) as sandbox: sandbox.ask(job)`."""

    def __init__(
        self, ids: list[str], model: bool, hidden: list[str], private: list[Path], forks: bool = FORKS
    ):
        self._setting = {"ids": ids, "model": model, "hidden": hidden, "private": [str(p) for p in private]}
        self._forks, self._process = forks, None

    def __enter__(self) -> "Sandbox":
        self._empty = tempfile.TemporaryDirectory(prefix="mechlab-grading-")
        try:
            if self._forks:
                self._start()
        except BaseException:
            self._empty.cleanup()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._stop()
        self._empty.cleanup()

    def ask(self, job: dict) -> dict:
        """The result of one job: status, message, flags, printed. A lost server is started again, once."""
        for _ in range(2):
            if not (self._forks and self._process and self._process.poll() is None):
                self._start()
            try:
                result = self._asked(job)
            except (OSError, queue.Empty, ValueError):
                self._stop()
                continue
            if not self._forks:
                self._stop()
            return {"flags": [], "printed": ""} | result
        text = "The process that checks answers was lost twice while it worked on this one."
        return {"status": "stopped", "message": text, "flags": [], "printed": ""}

    def _asked(self, job: dict) -> dict:
        self._send(job)
        if self._forks or job["kind"] == "quiz":
            return json.loads(self._line(job["seconds"] + GRACE))
        word, lines, ended = secrets.token_hex(16), [], ""
        try:
            while not lines or b'"word"' not in lines[-1]:
                lines.append(self._line(job["seconds"]))
                if lines[-1] == supervisor.READY:
                    self._send({"word": word, "hidden": job["hidden"]})
        except queue.Empty:
            ended = "time"
        except (OSError, ValueError):  # it is gone, and `verdict_of` says so
            pass
        return supervisor.verdict_of(b"".join(lines), word, ended, 0, job)

    def _start(self) -> None:
        command = [sys.executable, "-m", "mechlab_course.grading.judge", *([] if self._forks else ["--once"])]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        env = {name: os.environ[name] for name in KEPT if name in os.environ} | one_thread
        env |= {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
        env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "MECHLAB_STRICT": "0", "PYTHONHASHSEED": "0"}
        env |= {"PYTHONUTF8": "1"}  # an answer may print any letter, whatever the teacher's locale
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd=self._empty.name,
            start_new_session=True,
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=_pump, args=(self._process.stdout, self._lines), daemon=True).start()
        self._send(self._setting)
        try:
            ready = json.loads(self._line(START_UP))
        except (queue.Empty, ValueError):
            ready = {"ready": False, "message": "the process that checks answers did not start"}
        if not ready["ready"]:
            self._stop()
            raise SandboxError(f"Nothing can be graded: {ready['message']}")

    def _send(self, what: dict) -> None:
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()

    def _line(self, seconds: float) -> bytes:
        line = self._lines.get(timeout=seconds)
        if not line:
            raise OSError("the process has ended")
        return line

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()
        self._process = None


def _pump(pipe, lines: queue.Queue) -> None:
    """Lines of a pipe into a queue, so that waiting can end on every system; an empty one comes last."""
    try:
        for line in iter(lambda: pipe.readline(2_000_000), b""):
            lines.put(line)
    except (OSError, ValueError):
        pass
    lines.put(b"")
