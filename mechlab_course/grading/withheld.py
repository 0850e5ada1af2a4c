"""What a pack keeps back: answers sealed for `--no-answers`, judgement taken out for `--exam`.

Three packs of the same course. The full one holds everything that a notebook says and checks. Without
answers, no third hint and no report of results is in it; checks and the words to each choice are sealed,
since they hold worked answers, and still run. In an exam there are neither: what stands in their place
records.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

from mechlab_course import exam, sealed

FULL, SEALED, EXAM = "full", "sealed", "exam"
LEFT = {  # what is said of each pack: what in it still answers
    FULL: "Its third hints and checks hold worked answers. --no-answers hides them, --exam takes them out.",
    SEALED: "No worked answer can be read in it. Still there: the checks run, so whoever unseals them reads "
    "them; later cells and the library do what exercises ask for. What nobody may know needs --exam.",
    EXAM: "Nothing in it tells who is right. Still there: later cells and the library do what exercises ask "
    "for, and whoever has the whole course has its answers. Grade it with `mechlab grade`, here.",
}
# the results that notebooks ask for
WITH_ANSWERS = ("docs/ioi_report.md", "docs/methods_on_trial.md", "docs/two_hops.md")
_HINT = re.compile(r"<details><summary>Hint (\d)[^<]*</summary>.*?</details>\n?", re.DOTALL)
_BELOW = re.compile(r"<details><summary>When you have answered[^<]*</summary>.*?</details>\n?", re.DOTALL)
_COLAB = re.compile(r"\n*\[Open in Colab\]\([^)]*\)")  # there it is the published course that runs
_CHOICES = re.compile(r"^- \*\*a\*\* .*\Z", re.DOTALL | re.MULTILINE)
_CHOICE = re.compile(r"^- \*\*([a-z])\*\* ", re.MULTILINE)
_ASKED = re.compile(r"\bquiz\(\"([^\"]+)\"")
_RECORDS = '''\
"""An exam: what is answered is recorded here, and checked by whoever set it."""

from mechlab_course.exam import records

records({ids})
'''


class WithheldError(ValueError):
    """A notebook is not of the form that an exam can be made of; the text says where."""


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def prose(text: str, kept: str) -> str:
    """A cell of text without the hints, and the rest, that this pack keeps back."""
    if kept == FULL:
        return text
    text = _HINT.sub(lambda hint: "" if kept == EXAM or hint[1] == "3" else hint[0], text)
    for file in WITH_ANSWERS:
        text = text.replace(file, "a report that your teacher has")
    text = _COLAB.sub("", text)
    return _BELOW.sub("", text) if kept == EXAM else text


def checks(folder: Path, cells: list[dict], kept: str) -> dict[str, str]:
    """The files of `course/NN_name/` for a notebook of these cells, which still have their choices."""
    files = {
        path.name: path.read_text(encoding="utf-8")
        for path in (folder / "checks.py", folder / "quizzes.toml")
    }
    if kept == SEALED:
        return {name: sealed.seal(text, runs=name.endswith(".py")) for name, text in files.items()}
    if kept == EXAM:
        ids = [c["metadata"]["mechlab"]["id"] for c in cells if kind(c) == "exercise"]
        files["checks.py"] = _RECORDS.format(ids=json.dumps(ids)[1:-1])
        files["quizzes.toml"] = _only_asked(files["quizzes.toml"], questions(cells))
    return files


def kind(cell: dict) -> str:
    return cell["metadata"].get("mechlab", {}).get("kind", "")


def questions(cells: list[dict]) -> dict[str, dict[str, str]]:
    """The choices of each question, which stand at the end of the cell above it."""
    found = {}
    for above, cell in pairwise(cells):
        for id in _ASKED.findall(text_of(cell)) if kind(cell) == "quiz" else ():
            choices = _CHOICES.search(text_of(above))
            if choices is None:
                raise WithheldError(f"The choices of question {id} do not end the cell above it.")
            letter = _CHOICE.split(choices[0])[1:]
            found[id] = {a: " ".join(said.split()) for a, said in zip(letter[::2], letter[1::2], strict=True)}
    return found


def _only_asked(quizzes: str, asked: dict[str, dict[str, str]]) -> str:
    """The questions with their choices, no letter being right; predictions have no right one, and stay."""
    tables = re.split(r"(?m)^(?=\[\")", quizzes)[1:]
    lines = [
        table.split("\n#")[0].rstrip() + "\n" for table in tables if not re.search(r"(?m)^right *=", table)
    ]
    for id, choices in asked.items():
        said = {"right": ""} | choices
        pairs = (f"{name} = {json.dumps(text, ensure_ascii=False)}\n" for name, text in said.items())
        lines.append("".join([f'["{id}"]\n', *pairs]))
    return "\n".join(lines)


def as_exam(cells: list[dict]) -> list[dict]:
    """The cells with one for the name below the setup, and without choices: the questions show those."""
    made = []
    for n, cell in enumerate(cells):
        below = cells[n + 1] if n + 1 < len(cells) else None
        if below and kind(below) == "quiz":
            cell = cell | {"source": _CHOICES.sub("", text_of(cell)).rstrip().splitlines(True)}
        made.append(cell)
        if kind(cell) == "setup":
            source = exam.NAME_CELL.splitlines(True)
            made.append(cell | {"id": "exam-name", "metadata": {}, "source": source})
    return made
