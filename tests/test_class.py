"""A class as it hands in: twenty-two learners, fifteen ways, from the notebooks that they were given; one run.

Moodle's folders and Canvas's files lie side by side, which no class has, so that one run sees both.
"""

import csv
import io
import json
import re
import zipfile

import pytest

from mechlab_course.build import notebooks as build
from mechlab_course.build.sources import exercises, read
from mechlab_course.grading import confine
from mechlab_course.grading.grader import grade
from mechlab_course.grading.grades import Rules
from tests.handed_in import WRONG, answer

STEMS = {stem[:2]: stem for stem in build.sources()}
CELLS = {
    id: cell
    for number in ("12", "31")
    for id, cell, *_ in exercises(read(build.sources()[STEMS[number]]))
    if id not in ("12.6", "31.1", "31.5", "31.7")  # they run the model, or take long
}
SOLVED = {id: cell.solved() for id, cell in CELLS.items()}
# One learner's own way, with comments; another hands it in, a third after renaming everything.
OWN = {
    "12.1": "# first the direction, then what each part says along it\n"
    "towards = torch.stack([W_U[:, answer], W_U[:, rival]], dim=1)\n"
    "both = torch.tensordot(written, towards, dims=1)\nreturn (both[:, 0] - both[:, 1]) / float(scale)",
    "12.4": "rest = effects.sum(dim=1) / effects.shape[1]\n"
    "chosen = torch.cat([effects[:, answer, None], effects[:, rival, None]], dim=1)\n"
    "return torch.sub(chosen, rest.reshape(-1, 1))",
}


def renamed(code: str) -> str:
    for old, new in (
        ("towards", "d"),
        ("both", "out"),
        ("rest", "m"),
        ("chosen", "two"),
        ("# first", "# x: "),
    ):
        code = code.replace(old, new)
    return code.replace("the direction, then what each part says along it", "")


def filled(number: str, answers: dict[str, str], extra: tuple[str, ...] = ()) -> dict:
    """The notebook as it was handed out, with these cells in it; `extra` ones above them."""
    notebook = json.loads((build.ROOT / "notebooks" / f"{STEMS[number]}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        id = cell["metadata"].get("mechlab", {}).get("id", "")
        if cell["cell_type"] == "code" and id in answers:
            cell["source"] = answers[id].splitlines(True)
    for text in extra:
        cell = {
            "cell_type": "code",
            "execution_count": 1,
            "id": f"e{len(text)}",
            "metadata": {},
            "outputs": [],
        }
        notebook["cells"].insert(2, cell | {"source": text.splitlines(True)})
    return notebook


def text(number: str, answers: dict[str, str], extra: tuple[str, ...] = ()) -> str:
    return json.dumps(filled(number, answers, extra))


def with_outputs(notebook: dict) -> dict:
    picture = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBORw0KGgo="}}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            cell |= {"execution_count": number, "outputs": [picture]}
    return notebook


def colab(notebook: dict) -> str:
    mount = "from google.colab import drive\ndrive.mount('/content/drive')\n!pip install -q einops"
    cells = [{"cell_type": "code", "metadata": {}, "source": mount}]
    cells += [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"]]
    cells = [{key: value for key, value in cell.items() if key != "id"} for cell in cells]
    return json.dumps({"cells": cells, "metadata": {"colab": {}}, "nbformat": 4, "nbformat_minor": 0})


def script(notebook: dict) -> str:
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return "".join(f"# In[{number}]:\n\n{each}\n\n" for number, each in enumerate(code))


def of_windows() -> bytes:
    """A zip file with backslashes, an umlaut, marks and line ends of Windows, and what systems leave behind."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for number in ("12", "31"):
            lines = b"\xef\xbb\xbf" + text(number, SOLVED).replace("\\n", "\\r\\n").encode()
            archive.writestr(f"Lösung\\{STEMS[number]}.ipynb", lines)
        archive.writestr("Lösung\\desktop.ini", "[.ShellClassInfo]")
        archive.writestr("__MACOSX/._x.ipynb", "junk")
    return made.getvalue()


def whole_work() -> bytes:
    """The folder `work`: all notebooks as they were handed out but the two, with what JupyterLab leaves."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for number, stem in STEMS.items():
            page = text(number, SOLVED if number in ("12", "31") else {})
            archive.writestr(f"work/notebooks/{stem}.ipynb", page)
            archive.writestr(f"work/notebooks/.ipynb_checkpoints/{stem}-checkpoint.ipynb", page)
        archive.writestr(f"work/backup/{STEMS['12']}.ipynb", text("12", {}))
    return made.getvalue()


def body(id: str, lines: str) -> dict[str, str]:
    """The right answers, and this one in the place of one of them."""
    return SOLVED | {id: answer(id, lines)}


EINOPS = 'import einops\nreturn einops.einsum(z[-1], W_O, "h d, h d m -> h m") @ direction / scale'
FRAMES = "import sys\nreturn sys._getframe(1).f_back.f_locals.get('expected')"
URLLIB = "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')\nreturn 0"
REQUESTS = "import requests\nrequests.get('http://127.0.0.1:9', timeout=1)\nreturn 0"


def class_of_22() -> dict[str, dict[str, str | bytes]]:
    """What each handed in: the learner's folder, or "" for files of Canvas, and the files."""
    moodle = {
        "Anna Schmidt": {f"{STEMS[n]}.ipynb": json.dumps(with_outputs(filled(n, SOLVED))) for n in ("12", "31")},
        "Ben": {"12.ipynb": text("12", {id: SOLVED[id] for id in ("12.1", "12.2")})},
        "Cleo": {"12.ipynb": text("12", {id: answer(id, each) for id, each in WRONG.items()})},
        "Dan": {"12.ipynb": text("12", body("12.2", "while True:\n    pass"))},
        "Eva": {"Untitled1 (1).ipynb": text("12", SOLVED), "homework FINAL v2.ipynb": text("31", SOLVED)},
        "Finn": {"Lösung.zip": of_windows()},
        "Gül": {f"Copy of {STEMS[n]}.ipynb": colab(filled(n, SOLVED)) for n in ("12", "31")},
        "Hugo": {"12.ipynb": text("12", body("12.3", EINOPS) | {"12.1": f"%%time\n{SOLVED['12.1']}"},
                                  ("%pip install einops", "!nvidia-smi"))},
        "Ida": {"12.ipynb": text("12", body("12.1", FRAMES)
                                 | {"12.2": answer("12.2", "ml.course.check = None\nreturn 0")})},
        "Jon": {"12.ipynb": text("12", body("12.1", URLLIB))},
        "Kim": {"12.ipynb": text("12", body("12.1", REQUESTS))},
        "Leo": {"12.ipynb": text("12", body("12.1", "return written @ a"), ('a = run("John and Mary")[0, -1]',))},
        "Mia": {"12.ipynb": text("12", SOLVED), "31.ipynb": text("31", SOLVED)},
        "Nora": {"12.ipynb": text("12", {id: answer(id, f"{each}  # mine") for id, each in OWN.items()})},
        "Otto": {"12.ipynb": text("12", {id: answer(id, renamed(each)) for id, each in OWN.items()})},
        "Pia": {"12.ipynb": text("12", {id: answer(id, each) for id, each in OWN.items()})},
        "Rita": {"solution.html": "<html>", "solution.docx": b"PK"},
        "Sam": {f"{STEMS[n]}.py": script(filled(n, SOLVED)) for n in ("12", "31")},
        "Tess": {"work.zip": whole_work()},
        "Uma": {"12.ipynb": text("12", SOLVED | {"12.4": f"{SOLVED['12.4']}\n)"})},
        "": {
            f"smithtom_54321_998879_Copy of {STEMS['12']}.ipynb": colab(filled("12", SOLVED)),
            "smithtom_54321_998880_My solution.ipynb": text("31", SOLVED),
            "wuvera_LATE_54322_998881_12-1.ipynb": text("12", {}),
        },
    }  # fmt: skip
    numbered = enumerate(moodle.items(), 1001)
    return {f"{name}_{n}_assignsubmission_file" if name else "": files for n, (name, files) in numbered}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """(grades by learner, what was said, the folder with what was written)."""
    place, said = tmp_path_factory.mktemp("class"), []
    for folder, files in class_of_22().items():
        for name, data in files.items():
            path = place / "in" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
    rules = Rules(seconds=4, memory=600_000_000)
    found = grade(place / "in", place / "out" / "grades.csv", rules=rules, say=said.append)
    return {learner.name: (learner, grades) for learner, grades in found}, said, place / "out"


MOST = len(SOLVED)
POINTS = {
    "Anna Schmidt": MOST, "Ben": 2, "Cleo": 0, "Dan": 4, "Eva": MOST, "Finn": MOST, "Gül": MOST, "Hugo": 5, "Ida": 3,
    "Jon": 4, "Kim": 4, "Leo": 4, "Mia": MOST, "Nora": 2, "Otto": 2, "Pia": 2, "Rita": 0, "Sam": MOST, "Tess": MOST,
    "Uma": 4, "smithtom": MOST, "wuvera": 0,
}  # fmt: skip
TOLD = {
    ("Cleo", "12.1"): "The norm is missing",
    ("Dan", "12.2"): "ran longer than 4 seconds",
    ("Ida", "12.1"): "looks into Python's frames",
    ("Ida", "12.2"): "it changes `ml.course.check`",
    ("Jon", "12.1"): "it opens a network connection",
    ("Kim", "12.1"): "it opens a network connection",
    ("Leo", "12.1"): "Your answer uses `a`, which code cell",
    ("Uma", "12.4"): "not Python in line",
}


@pytest.mark.skipif(not confine.LINUX, reason="the sandbox is Linux's")
def test_a_class_of_twenty_two(graded):
    found, said, out = graded
    assert {name: sum(g.points for g in grades.values()) for name, (_, grades) in found.items()} == POINTS
    assert "22 learners; notebooks 12, 31," in said[0]  # and not all twenty, which Tess's folder holds
    for (name, id), message in TOLD.items():
        assert message in found[name][1][id].message, found[name][1][id]
    assert "in it, only solution.docx, solution.html." in found["Rita"][0].problems[0]
    rows = {
        row["learner"]: row
        for row in csv.DictReader(io.StringIO((out / "grades.csv").read_text("utf-8-sig")))
    }
    assert rows["Anna Schmidt"]["id"] == "1001" and rows["smithtom"]["id"] == "54321"
    assert rows["wuvera"]["days late"] == "LATE" and rows["Anna Schmidt"]["days late"] == ""
    assert rows["Eva"]["total"] == str(MOST) and int(rows["Eva"]["per cent"]) < 100  # of all of 12 and 31
    page = (out / "feedback" / "Ben.html").read_text()
    assert re.search(r"<p>2 of 11 points \(18 %\)\. 2 of 11 correct\.</p>", page)
    assert "<h2>12.3 The heads of a layer: not attempted</h2>" in page


@pytest.mark.skipif(not confine.LINUX, reason="the sandbox is Linux's")
def test_likeness_is_a_hint_and_hint_three_is_none(graded):
    """Nora and Otto handed in what Pia wrote; Mia, Anna and others have the worked answer, word for word."""
    summary = (graded[2] / "summary.html").read_text()
    alike = summary.partition("<h2>Alike</h2>")[2].partition("<h2>")[0]
    pairs = re.findall(r"<li>.*?>(\w+)</a> and .*?>(\w+)</a>: \d things", alike)
    assert sorted(pairs) == [("Nora", "Otto"), ("Nora", "Pia"), ("Otto", "Pia")]
