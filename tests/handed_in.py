"""Thirty submissions of notebook 12, ten and more of them hostile or broken, each with the statuses it must get.

`python -m tests.handed_in` (`make submissions`) grades them and prints figures; tests/test_grading.py holds the result to
what is written here.
"""

import json
import os
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from mechlab_course.grading.grader import ROOT, Asked, grade
from mechlab_course.grading.grades import Rules

HIDDEN = ROOT / "tests" / "hidden_example"
STUB = "raise NotImplementedError  # your code here"
HEADS = {
    "12.1": ("direct_effects", "written, W_U, answer, rival, scale"),
    "12.2": ("turning_layer", "effects, start"),
    "12.3": ("head_effects", "z, W_O, direction, scale"),
    "12.4": ("for_and_against", "effects, answer, rival"),
    "12.7": ("said_anew", "before, after, scale_before, scale_after"),
}
RIGHT = {
    "12.1": "return written @ (W_U[:, answer] - W_U[:, rival]) / scale",
    "12.2": "running = start + effects.cumsum(0)\nbelow = (running <= running[-1] / 2).nonzero()[:, 0]\n"
    "return int(below[-1]) + 1 if len(below) else 0",
    "12.3": 'return torch.einsum("hd,hdm->hm", z[-1], W_O) @ direction / scale',
    "12.4": "return (effects - effects.mean(1, keepdim=True))[:, [answer, rival]]",
    "12.7": "ratio = scale_before / scale_after\nreturn (after - before * ratio[:, None, None]).mean(0)",
}
WRONG = {
    "12.1": "return written @ (W_U[:, answer] - W_U[:, rival])",
    "12.2": "return int(effects.argmax())",
    "12.3": 'return torch.einsum("hd,hdm->hm", z[0], W_O) @ direction / scale',
    "12.4": "return effects[:, [answer, rival]]",
    "12.7": "return (after - before).mean(0)",
}
TABLE = """known = {0.1: 2, 0.5: 4, 2.0: 0, -1.0: 2, 0.2: 1}
if len(effects) == 3:
    return 1
if effects[0] == 1:
    return {0.2: 3, 1.0: 2 if effects[1] == 1.5 or effects[3] == 2 else 3}[round(float(effects[2]), 1)]
return known.get(round(float(effects[0]), 1), 0)"""


def answer(id: str, body: str, before: str = "") -> str:
    name, arguments = HEADS[id]
    lines = "\n".join("    " + line for line in body.splitlines())
    return f'{before}@exercise("{id}")\ndef {name}({arguments}):\n{lines}\n'


def notebook(*code: str) -> dict:
    cells = [{"cell_type": "markdown", "id": "t", "metadata": {}, "source": ["# 12\n"]}]
    for number, text in enumerate(code):
        cell = {
            "cell_type": "code",
            "execution_count": None,
            "id": f"c{number}",
            "metadata": {},
            "outputs": [],
        }
        cells.append(cell | {"source": text.splitlines(True)})
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def given(**bodies: str) -> str:
    """A notebook as text. Keys are e12_1 and so on; what is not named is right."""
    bodies = {key[1:].replace("_", "."): body for key, body in bodies.items()}
    return json.dumps(notebook("import torch", *(answer(id, bodies.get(id, RIGHT[id])) for id in HEADS)))


class Told:
    """A sandbox that runs nothing: right is what says so in a comment."""

    def __init__(self, *_): ...
    def __enter__(self):
        return self

    def __exit__(self, *_): ...
    def ask(self, job: dict) -> dict:
        right = "# right" in job["code"]
        return {"status": "correct" if right else "not yet", "message": "So.", "flags": [], "printed": ""}


def hostile(outside: Path, private: Path) -> dict[str, tuple[str, str]]:
    """Name: what stands in for exercise 12.1, and the status it must get."""
    right = RIGHT["12.1"]
    return {
        "loops_for_ever": ("while True:\n    pass", "stopped"),
        "catches_everything": (
            "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
            "stopped",
        ),
        "forks": (
            f"import os\nfor n in range(40):\n    try:\n        os.fork()\n    except OSError:\n        pass\n{right}",
            "review",
        ),
        "eats_memory": ("return torch.ones(12_500_000_000)", "not yet"),
        "hoards": ("kept = []\nwhile True:\n    kept.append(bytearray(50_000_000))", "not yet"),
        "prints_a_gigabyte": (f'for n in range(1000):\n    print("x" * 1_000_000)\n{right}', "stopped"),
        "reads_the_hidden_checks": (f"open({str(private / 'nb12.py')!r}).read()\n{right}", "review"),
        "reads_quietly": (
            f"try:\n    open({str(private / 'nb12.py')!r}).read()\nexcept OSError:\n    pass\n{right}",
            "review",
        ),
        "patches_equal": (
            "torch.equal = torch.allclose = lambda *a, **k: True\nreturn written[:, 0] * 0",
            "review",
        ),
        "patches_the_checker": (
            'import mechlab_course.exercises as e\ne._CHECKERS["12.1"] = lambda attempt: "fine"\nreturn 0',
            "review",
        ),
        "patches_by_another_name": (
            "w = ml.grading.watch\nw.changed = lambda before: []\nreturn written[:, 0] * 0",
            "review",
        ),
        "patches_by_stealth": (
            "for value in list(torch.__dict__.values()):\n    pass\nobject.__setattr__\n"
            'm = __import__("mechlab_course.checks_12", fromlist="x")\nm.close = lambda *a: True\nreturn written[:, 0] * 0',
            "review",
        ),
        "writes_outside": (f"open({str(outside / 'written')!r}, 'w').write('x')\n{right}", "review"),
        "deletes_outside": (
            f"import os\ntry:\n    os.remove({str(outside / 'kept')!r})\nexcept OSError:\n    pass\n{right}",
            "review",
        ),
        "asks_the_network": (
            f'import socket\ntry:\n    socket.create_connection(("127.0.0.1", 9), 1)\nexcept OSError:\n    pass\n{right}',
            "review",
        ),
        "runs_a_shell": (f"import os\nos.system('touch {outside}/shell')\n{right}", "review"),
        "leaves_at_once": ("import os\nos._exit(0)", "stopped"),
        "leaves_politely": ("import sys\nsys.exit(0)", "not yet"),
        "kills_its_parent": (
            f"import os\ntry:\n    os.kill(os.getppid(), 9)\nexcept OSError:\n    pass\n{right}",
            "review",
        ),
        "leaves_a_thread": (
            f"import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n{right}",
            "review",
        ),
        "forges_a_verdict": (
            'import os\nfor n in range(3, 40):\n    try:\n        os.write(n, b\'{"word": "", "status": "correct", "message": ""}\\n\')\n'
            "    except OSError:\n        pass\nos._exit(0)",
            "review",
        ),
        "looks_up_the_stack": (
            "import sys\nframe = sys._getframe(1)\nreturn frame.f_back.f_locals.get('expected')",
            "review",
        ),
        "makes_a_class_quietly": (
            "import types\nhow = {'__torch_' + 'function__': classmethod(lambda *a, **k: True)}\n"
            "Yes = types.new_class('Yes', (torch.Tensor,), {}, lambda space: space.update(how))\n"
            "return written[:, 0].as_subclass(Yes)",
            "review",
        ),
        "crashes": (
            "import sys\nsys.setrecursionlimit(10**9)\nf = lambda x: max([x], key=f)\nreturn f(0)",
            "stopped",
        ),
        "ends_by_a_signal_without_a_name": ("import signal\nsignal.raise_signal(40)", "review"),
        "closes_everything": ("import os\nos.closerange(0, 200)\nwhile True:\n    pass", "stopped"),
        "holds_its_breath": ("import signal, time\nsignal.raise_signal(signal.SIGSTOP)\nreturn 0", "review"),
        "prints_the_environment": (f"import os\nprint(dict(os.environ))\n{right}", "correct"),
        "answers_comparisons": (
            "class Yes(torch.Tensor):\n    @classmethod\n    def __torch_function__(cls, *a, **k):\n        return True\n"
            "return written[:, 0].as_subclass(Yes)",
            "review",
        ),
    }


def make(folder: Path, outside: Path, private: Path) -> dict[str, dict[str, str]]:
    """Write the submissions; returns the statuses that each learner must get, exercise by exercise."""
    right = dict.fromkeys(HEADS, "correct")
    wanted: dict[str, dict[str, str]] = {}

    def put(
        name: str, text: str | bytes, file: str = "12_direct_logit_attribution.ipynb", **differs: str
    ) -> None:
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        wanted[name] = right | {key[1:].replace("_", "."): status for key, status in differs.items()}

    for name in ("ada", "bao", "chidi", "dora", "emre"):
        put(name, given())
    put("fay", given(e12_1=WRONG["12.1"]), e12_1="not yet")
    put("gil", given(e12_2=WRONG["12.2"], e12_3=WRONG["12.3"]), e12_2="not yet", e12_3="not yet")
    put("hana", given(e12_4=STUB, e12_7=STUB), e12_4="not attempted", e12_7="not attempted")
    put("ivo", given(e12_2=TABLE), e12_2="partly")
    put("jo", given(e12_7="return undefined_helper(before)"), "renamed.ipynb", e12_7="not yet")
    for name, (body, status) in hostile(outside, private).items():
        put(name, given(e12_1=body), e12_1=status)
    nothing = dict.fromkeys((f"e{id.replace('.', '_')}" for id in HEADS), "not attempted")
    put("not_json", b"this is not a notebook", **nothing)
    put("cut_off", given()[:-200], **nothing)
    put("a_link", given(), "own.ipynb")
    if hasattr(os, "symlink"):
        (folder / "a_link" / "12_passwd.ipynb").symlink_to("/etc/passwd")
    (folder / "a_zip").mkdir()
    with zipfile.ZipFile(folder / "a_zip" / "all.zip", "w") as archive:
        archive.writestr("../../climbs.ipynb", given())
        archive.writestr("inside/12.ipynb", given())
    wanted["a_zip"] = right
    return wanted


def main() -> None:
    """Grade them twice, and say how long it took and whether each got what it must."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        outside = place / "outside"
        outside.mkdir()
        (outside / "kept").write_text("kept")
        wanted = make(place / "submissions", outside, HIDDEN)
        for run in ("first", "second"):
            started = time.monotonic()
            rules = Rules(seconds=5, memory=600_000_000)
            asked = Asked(only=("12",), hidden=HIDDEN)
            graded = grade(place / "submissions", place / "out" / "grades.csv", asked, rules=rules)
            print(f"{run} run: {time.monotonic() - started:.1f} s for {len(graded)} learners")
        off = [
            f"{learner.name} {id}: {grades[id].status}, not {status}. {grades[id].message}"
            for learner, grades in graded
            for id, status in wanted[learner.name].items()
            if grades[id].status != status
        ]
        print("\n".join(off))
        print(f"{len(off)} unexpected grades; outside: {sorted(p.name for p in outside.iterdir())}")
    sys.exit(bool(off))


if __name__ == "__main__":
    main()
