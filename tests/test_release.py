"""The pack for learners: whole, small, and silent about what it should not tell."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mechlab_course import folders, sealed
from mechlab_course.build import notebooks as build
from mechlab_course.build.sources import exercises, read
from mechlab_course.cli import app
from mechlab_course.exam import NAME_CELL, learner, name_in, order
from mechlab_course.exam import asked as said_to
from mechlab_course.grading import confine, opened, withheld
from mechlab_course.grading.grader import Asked, grade
from mechlab_course.grading.grades import Rules
from mechlab_course.grading.release import ReleaseError, release
from mechlab_course.grading.withheld import EXAM, FULL, SEALED
from mechlab_course.questions import Quiz, declared
from tests.handed_in import HEADS, RIGHT, WRONG, answer

ROOT, SOURCES = folders.ROOT, build.sources()
STEMS = {stem[:2]: stem for stem in SOURCES}
QUESTIONS = {id: each for number in STEMS for id, each in declared(number, Quiz).items()}
KEPT = pytest.mark.parametrize("kept", [FULL, SEALED, EXAM])
squeezed = lambda text: re.sub(r"\s+", "", text)


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Each of the three packs of the whole course, unpacked."""
    place = tmp_path_factory.mktemp("packs")
    files = release(place / "full.zip", [], kept=FULL)
    with zipfile.ZipFile(place / "full.zip") as archive:
        assert sorted(archive.namelist()) == [f"mechlab/{name}" for name in files]
        archive.extractall(place / FULL)
    for kept in (SEALED, EXAM):
        release(place / kept / "mechlab", [], kept=kept)
    return {kept: place / kept / "mechlab" for kept in (FULL, SEALED, EXAM)}


def texts(pack: Path) -> dict[str, str]:
    """What can be read in a pack: the text of each file, the cells of each notebook."""
    found = {}
    for path in sorted(pack.rglob("*")):
        if path.is_file() and path.suffix not in (".safetensors", ".png"):
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".ipynb":
                text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
            found[path.relative_to(pack).as_posix()] = text
    return found


def inside(pack: Path, code: str, home: Path) -> str:
    """What this prints when it runs in a pack, and nowhere else."""
    env = os.environ | {"PYTHONPATH": str(pack), "MECHLAB_HOME": str(home), "MECHLAB_DATA": ""}
    where = f"import mechlab_course\nassert mechlab_course.__file__.startswith({str(pack)!r})\n"
    command = [sys.executable, "-c", where + code]
    done = subprocess.run(command, cwd=pack / "notebooks", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is in it


@KEPT
def test_the_pack_holds_what_learners_need(packs, kept):
    pack = packs[kept]
    names = {path.relative_to(pack).as_posix() for path in pack.rglob("*") if path.is_file()}
    assert {"README.md", "Makefile", "constraints.txt", "pyproject.toml", "environment.yml"} <= names
    assert {"LICENSE", "data/README.md", "docs/glossary.md", "mechlab/__init__.pyi"} <= names
    assert {f"notebooks/{stem}.ipynb" for stem in SOURCES} <= names
    teachers = ("solutions", "tests", ".git/", "benchmarks", "docs/teaching", "data/make")
    assert not [
        n for n in names if n.startswith(teachers) or re.search(r"^course/.*(notebook.py|tried.txt)$", n)
    ]
    readme = (pack / "README.md").read_text(encoding="utf-8")
    assert "solutions/" not in readme and "make test" not in readme
    links = re.findall(r"\]\(([^)\s#]+)", readme)
    assert len(links) > len(SOURCES) and all((pack / link).exists() for link in links)


def test_a_pack_of_some_notebooks_has_no_broken_links_and_the_same_bytes_each_time(tmp_path):
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    assert release(one, ["12"]) == release(two, ["12"]) and one.read_bytes() == two.read_bytes()
    release(tmp_path / "folder", ["12"])
    for part, names in {"notebooks": "*.ipynb", "course": "*"}.items():
        kept = sorted(path.stem for path in (tmp_path / "folder" / part).glob(names))
        assert kept == ["00_start_here", "12_direct_logit_attribution"]
    for path in (tmp_path / "folder" / "notebooks").iterdir():
        links = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", path.read_text(encoding="utf-8"))
        assert all((path.parent / link).exists() for link in links)
    with pytest.raises(ReleaseError, match="there already"):
        release(tmp_path / "folder", [])
    with pytest.raises(ReleaseError, match="no notebook 99"):
        release(tmp_path / "x.zip", ["99"])


def test_a_pack_is_installed_as_its_readme_says(tmp_path):
    """`pip install -e .` builds it with hatchling, from the files that are there and no others."""
    release(tmp_path / "pack", ["22"], kept=EXAM)
    assert "[lab]" in (tmp_path / "pack" / "README.md").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=tmp_path / "pack", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {"mechlab/data/probing/cities.csv", "mechlab_course/grading/pack.md"} <= set(names)
    assert len([name for name in names if name.endswith(".ipynb")]) == 2


@pytest.mark.model
def test_the_setup_of_a_notebook_runs_in_the_pack(packs, tmp_path):
    source = json.loads((packs[SEALED] / "notebooks" / f"{STEMS['12']}.ipynb").read_text(encoding="utf-8"))
    setup = next("".join(c["source"]) for c in source["cells"] if c["cell_type"] == "code")
    printed = inside(packs[SEALED], f"{setup}\nprint(check, model.cfg.n_layers)", tmp_path)
    assert printed.strip().endswith("30")


# The data that its notebooks open


def test_each_notebook_takes_the_data_it_opens_along_and_no_other(tmp_path):
    files = [path.relative_to(ROOT / "data").as_posix() for path in (ROOT / "data").rglob("*.*")]
    files = [file for file in files if not file.startswith("make/")]
    needed = {}
    for number, stem in STEMS.items():
        cells = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
        checks = (ROOT / "course" / stem / "checks.py").read_text(encoding="utf-8")
        needed[number] = {*opened.needed([*map(withheld.text_of, cells), checks], files)}
    assert set(files) - set().union(*needed.values()) == {
        "words.csv",
        "reference/planted_trained.csv",
        *(f"tracing/{name}" for name in ("cities.csv", "explorer.json", "two_hops.json")),
    }  # those are for the glossary, the site, and two reports; all else is for somebody
    common = set.intersection(*needed.values()) | needed["12"]  # what every `ml.reference.table` reads
    assert common >= {*opened.ALWAYS} and all(name.startswith(("README", "reference/")) for name in common)
    needed = {number: names - common for number, names in needed.items()}
    assert not needed["12"] and not needed["31"] and needed["00"] == {"prompts/ioi_small.csv"}
    assert needed["21"] == {"lens/smollm2.safetensors", "text/smollm2.jsonl"}
    assert needed["34"] == {"reference/rome.csv", "text/smollm2.jsonl"} | {
        file for file in files if file.startswith("rome/")
    }
    release(tmp_path / "few.zip", ["12", "31"])
    assert (tmp_path / "few.zip").stat().st_size < 800_000  # it was 19 MB when all of the data went along


def test_what_a_notebook_opens_is_read_from_code_of_any_form():
    files = ["sae/a/x.csv", "sae/b.csv", "text/smollm2.jsonl", "rome/f.csv"]
    for code, expected in {
        'ml.reference.data_dir() / "sae" / "a" / name': ["sae/a/x.csv"],
        'folder = data_dir() / "sae"\nopen(folder / "b.csv")': ["sae/a/x.csv", "sae/b.csv"],
        'pd.read_csv(data_dir() / "sae" / "b.csv").mean() / 2': ["sae/b.csv"],
        "listed = [*data_dir().iterdir()]": files,
        "texts = ml.own_text(model)": ["text/smollm2.jsonl"],
        "x, = ml.edit_fact(model, fact)": ["text/smollm2.jsonl"],  # through two other functions
        "Sentences wait in `data/rome/f.csv`.": ["rome/f.csv"],
        "%%time\nmodel(1) / 2": [],
    }.items():
        assert opened.needed([code], files) == expected, code


def test_a_sealed_check_reads_the_data_of_its_pack(tmp_path):
    """22.6 is checked on two tables; the first cell reads a third."""
    release(tmp_path / "pack", ["22"], kept=SEALED)
    cell = next(cell for id, cell, *_ in exercises(read(SOURCES[STEMS["22"]])) if id == "22.6")
    code = "from mechlab_course import check, exercise, quiz\nimport mechlab as ml, pandas as pd\n"
    code += f"assert ml.reference.data_dir().is_relative_to({str(tmp_path)!r})\n{cell.solved()}\n"
    code += 'pd.read_csv(ml.reference.data_dir() / "probing" / "adjectives.csv")\n'
    code += f"print(check(group_of))\nprint(quiz('22.a', '{QUESTIONS['22.a'].right}'))"
    assert re.findall(r": (correct)\.", inside(tmp_path / "pack", code, tmp_path)) == ["correct"] * 2


# Without answers


def answers_in(found: dict[str, str]) -> set[str]:
    """Exercises and questions that something in a pack answers, library and lesson left out.

    An exercise by any line of its solution that is long enough to be no chance.
    """
    answered = set()
    flat = {
        name: squeezed(text)
        for name, text in found.items()
        if not name.startswith(("mechlab/", "notebooks/"))
    }
    lessons = {name: squeezed(text) for name, text in found.items() if name.startswith("notebooks/")}
    for path in SOURCES.values():
        for id, cell, *_ in exercises(read(path)):
            solution = cell.source.partition("# >>> solution\n")[2].partition("# <<< solution")[0]
            lines = [line for line in map(squeezed, solution.splitlines()) if len(line) >= 25]
            if any(line in text for line in lines for text in flat.values()):
                answered.add(id)
            if len(solution.split("\n")) > 2 and any(squeezed(solution) in text for text in lessons.values()):
                answered.add(id)
    for id, question in QUESTIONS.items():
        words = [squeezed(why) for why in question.why.values()]
        if any(why in text for why in words for text in (flat | lessons).values()):
            answered.add(id)
    return answered


def test_only_the_full_pack_holds_worked_answers(packs):
    found = {kept: texts(pack) for kept, pack in packs.items()}
    full = answers_in(found[FULL])
    assert full >= set(QUESTIONS) and len(full - set(QUESTIONS)) > 40
    for kept, hints in ((SEALED, {"1", "2"}), (EXAM, set())):
        assert answers_in(found[kept]) == set(), kept
        whole = "\n".join(found[kept].values())
        lessons = "".join(text for name, text in found[kept].items() if name.startswith("notebooks/"))
        assert set(re.findall(r"<summary>Hint (\d)", lessons)) == hints and "ioi_report" not in lessons
        assert not re.search(r'(?m)^right = "\w', whole) and "docs/ioi_report.md" not in found[kept]
    assert not [name for name, text in found[EXAM].items() if name.endswith("checks.py") and "def " in text]


def test_what_is_sealed_is_what_it_was(packs):
    for stem in SOURCES:
        for name in ("checks.py", "quizzes.toml"):
            shut, open_ = packs[SEALED] / "course" / stem / name, ROOT / "course" / stem / name
            assert sealed.read(shut) == sealed.read(open_) == open_.read_text(encoding="utf-8")
            assert shut.read_bytes() != open_.read_bytes()


@KEPT
def test_the_command_says_what_is_left(kept, tmp_path):
    option = {FULL: [], SEALED: ["--no-answers"], EXAM: ["--exam"]}[kept]
    done = CliRunner().invoke(app, ["release", "--out", str(tmp_path / "p.zip"), "--only", "12", *option])
    assert done.exit_code == 0 and withheld.LEFT[kept] in done.stdout


# An exam


def test_the_order_of_choices_is_a_learners_own_and_stays_it():
    orders = {tuple(order(f"Learner {n}", "12.c", "abcd").values()) for n in range(200)}
    assert len(orders) == 24  # each of them is somebody's
    assert order("Zoë  de Roo ", "12.c", "dcba") == order("zoe\u0308 de roo", "12.c", "abcd")
    assert list(order("x", "12.c", "abcd")) == list("abcd")


def test_the_name_is_found_in_the_notebook_and_nowhere_else():
    named = lambda given: NAME_CELL.replace('learner("")', f"learner({given})")
    assert name_in([named('"Ada"'), 'quiz("12.c", "b")']) == "Ada" == name_in([named('name = "Ada" ')])
    assert name_in(["import torch", named('"Ada"'), named("'D\\'Arcy'")]) == "D'Arcy"  # the last one counts
    assert name_in([NAME_CELL]) == "" and name_in(['learner("Ada")']) is None


def test_no_choice_is_shown_before_there_is_a_name(monkeypatch, capsys):
    monkeypatch.setattr("mechlab_course.exam._name", "")
    assert "name" in said_to("12.c", {"a": "One.", "b": "Two."}, ...)[1]
    learner(" ")
    learner("Ada  Lovelace")
    empty, given = capsys.readouterr().out.splitlines()
    assert "Write your name" in empty and given.endswith(" Ada Lovelace.")
    status, shown = said_to("12.c", {"a": "One.", "b": "Two."}, ...)
    assert status == "not attempted" and shown.count("One.") == shown.count("Two.") == 1
    assert said_to("12.c", {"a": "One.", "b": "Two."}, "A")[0] == "recorded"


NAMES = ("Ada Lovelace", "Grace Hopper")
ASK = """
import json
from mechlab_course import check, exercise, quiz, progress_table
from mechlab_course.exam import learner
out = {}
for name in NAMES:
    learner(name)
    out[name] = {id: quiz(id).message for id in IDS}
    said = {(quiz(id, letter).status, check.__name__) for id in IDS for letter in "abc"}
    assert said == {("recorded", "check")}, said
names = {}
for code in CODES:
    exec("import torch\\nfrom mechlab_course import exercise\\n" + code, names)
    outcome = check(names[code.partition("def ")[2].partition("(")[0]])
    out.setdefault("checks", []).append([outcome.id, outcome.status, outcome.message])
out["table"] = repr(progress_table())
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def exam(packs, tmp_path_factory):
    """What the checks and questions of notebook 12 say in an exam."""
    codes = [answer(id, body) for id in HEADS for body in (RIGHT[id], WRONG[id], "return nothing")]
    codes.append(
        '@exercise("12.1")\ndef direct_effects(*_):\n    """A task."""\n    raise NotImplementedError\n'
    )
    ids = [id for id in QUESTIONS if id.startswith("12")]
    code = f"NAMES, IDS, CODES = {NAMES!r}, {ids!r}, {codes!r}\n{ASK}"
    return json.loads(inside(packs[EXAM], code, tmp_path_factory.mktemp("home")).splitlines()[-1])


def test_nothing_in_an_exam_tells_who_is_right(exam):
    *answered, stub = exam["checks"]
    assert {status for _, status, _ in answered} == {"recorded"} and stub[1] == "not attempted"
    assert len({message for _, _, message in answered}) == 1
    assert "5 of 6" in exam["table"] and "3 of 3" in exam["table"]


def own_letter(shown: str, id: str, right: str) -> str:
    """The letter that stands before the choice which the course calls by this one, as a learner sees it."""
    cells = json.loads((ROOT / "notebooks" / f"{STEMS[id[:2]]}.ipynb").read_text(encoding="utf-8"))["cells"]
    choice = withheld.questions(cells)[id][right]
    return next(line[0] for line in shown.splitlines() if line[1:] == f": {choice}")


def filled(pack: Path, answers: dict[str, str], letters: dict[str, str], name: str) -> str:
    """Notebook 12 as it was handed out, with these answers in it."""
    notebook = json.loads((pack / "notebooks" / f"{STEMS['12']}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        id = cell["metadata"].get("mechlab", {}).get("id", "")
        text = answers.get(id, "".join(cell["source"]))
        text = text.replace('learner("")', f'learner("{name}")')
        for question, letter in letters.items():
            text = text.replace(f'quiz("{question}", ...)', f'quiz("{question}", "{letter}")')
        cell["source"] = text.splitlines(True)
    return json.dumps(notebook)


@pytest.mark.skipif(not confine.LINUX, reason="the sandbox is Linux's")
def test_an_exam_is_graded_as_the_course_would_be(packs, exam, tmp_path):
    right = {id: question.right for id, question in QUESTIONS.items() if id.startswith("12")}
    wrong = right | {"12.b": "d"}
    bodies = {"Ada Lovelace": RIGHT, "Grace Hopper": RIGHT | {"12.2": WRONG["12.2"]}}
    for kept in (FULL, EXAM):
        for name, letters in zip(NAMES, (right, wrong), strict=True):
            if kept == EXAM:
                letters = {id: own_letter(exam[name][id], id, meant) for id, meant in letters.items()}
            text = filled(packs[kept], {id: answer(id, b) for id, b in bodies[name].items()}, letters, name)
            target = tmp_path / "in" / f"{name}, {kept}" / "12.ipynb"
            target.parent.mkdir(parents=True)
            target.write_text(text, encoding="utf-8")
    rules = Rules(seconds=10, quiz_points=1.0)
    graded = grade(tmp_path / "in", tmp_path / "out" / "g.csv", Asked(), rules=rules, say=print)
    marks = {
        who.name: {id: (each.status, each.points) for id, each in given.items()} for who, given in graded
    }
    ada, grace = (marks[f"{name}, {EXAM}"] for name in NAMES)
    assert [ada, grace] == [marks[f"{name}, {FULL}"] for name in NAMES]
    assert sum(points for _, points in ada.values()) == 8  # five answers, three letters
    assert grace["12.b"] == ("not yet", 0) == grace["12.2"]
