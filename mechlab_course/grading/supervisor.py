"""Watch the process of one answer: its time, what it prints, how it ends, whether its verdict is valid."""

import json
import os
import secrets
import selectors
import signal
import time
from collections.abc import Callable
from contextlib import suppress

READY = b'{"ready": true}\n'
KILLED, OUT_OF_TIME = 9, 24  # signals, by number because not every system has them
SHOWN, FLOOD = 4_000, 10_000_000  # bytes of printed text: kept, and too many


def supervise(job: dict, keep: list[int], child: Callable[[int, int, int], None]) -> dict:
    """Fork a child for this answer and wait for its verdict, or for one of its limits."""
    (control_read, control), (verdict, verdict_write), (printed, printed_write) = (
        os.pipe() for _ in range(3)
    )
    pid = os.fork()
    if pid == 0:
        for handle in (*keep, control, verdict, printed):
            os.close(handle)
        child(control_read, verdict_write, printed_write)
    for handle in (control_read, verdict_write, printed_write):
        os.close(handle)
    word, told, lines, text, count, ended = secrets.token_hex(16), False, b"", b"", 0, ""
    deadline = time.monotonic() + job["seconds"]
    with selectors.DefaultSelector() as waiting:
        waiting.register(verdict, selectors.EVENT_READ)
        waiting.register(printed, selectors.EVENT_READ)
        while not ended and waiting.get_map():
            left = deadline - time.monotonic()
            ready = waiting.select(left) if left > 0 else []
            ended = "" if ready else "time"
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                if not data:
                    waiting.unregister(key.fd)
                elif key.fd == printed:
                    text, count = (text + data)[:SHOWN], count + len(data)
                    ended = "output" if count > FLOOD else ended
                else:
                    lines += data
                    ended = "output" if len(lines) > 1_000_000 else ended
                    if not told and READY in lines:
                        told = True
                        tell(control, {"word": word, "hidden": job["hidden"]})
    while not ended and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)  # it has closed its pipes and lives on, for a moment or to escape the limits
        ended = "time" if time.monotonic() > deadline else ""
    for kill, whom in ((os.kill, pid), (os.killpg, pid)):
        with suppress(ProcessLookupError, PermissionError):
            kill(whom, KILLED)
    end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for handle in (control, verdict, printed):
        os.close(handle)
    return verdict_of(lines, word, ended, end, job) | {"printed": text.decode(errors="replace")}


def tell(pipe: int, what: dict) -> None:
    with suppress(OSError):
        os.write(pipe, json.dumps(what).encode() + b"\n")


def verdict_of(told: bytes, word: str, ended: str, end: int, job: dict) -> dict:
    """What the child told, if it knew the word; otherwise why there is no verdict.

    All of it is foreign: an answer may have written here too, and what does not look like ours is noted.
    """
    result, flags = None, []
    for line in told.split(b"\n")[:-1]:
        said = _read(line)
        if isinstance(said.get("note"), str):
            flags.append(said["note"][:300])
        elif said.get("word") == word and _is_verdict(said) and _is_verdict(said.get("further", said)):
            result = said
        elif said != {"ready": True}:
            flags.append("writes into the grader's own channel")
    flags = list(dict.fromkeys(flags))[:20]
    if result and not ended and end in (0, -KILLED):
        kept = {key: result[key] for key in ("status", "message", "further") if key in result}
        return kept | {"flags": flags}
    why = {
        "time": f"It ran longer than {job['seconds']:g} seconds and was stopped. "
        "Is there a loop that does not end?",
        "output": f"It printed more than {FLOOD // 1_000_000} MB and was stopped.",
    }
    ended = "time" if end == -OUT_OF_TIME else ended
    killed = f"Its process was killed ({_signal(-end)})." if end < 0 else ""
    message = why.get(ended) or killed or "It ended the process that was checking it."
    return {"status": "stopped", "message": message, "flags": flags}


def _signal(number: int) -> str:
    """Its name; those for the use of programs, from 32 on, have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read(line: bytes) -> dict:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _is_verdict(said: object) -> bool:
    """Whether it has the form of one: a known status, and a message of a length that can be shown."""
    if not isinstance(said, dict) or said.get("status") not in ("correct", "not yet", "not attempted"):
        return False
    return isinstance(said.get("message"), str) and len(said["message"]) < 20_000
