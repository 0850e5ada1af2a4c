"""Rules for notebooks and the repository that a reader would notice if they were broken."""

import ast
import csv
import importlib.metadata
import io
import json
import re
import runpy
import subprocess
import symtable
import sys
import tokenize
from itertools import chain, pairwise
from pathlib import Path

import pytest

from mechlab_course import doctor
from mechlab_course.build import notebooks as build
from mechlab_course.build.docs import names
from mechlab_course.build.sources import exercises, read
from mechlab_course.checking import mistakes_of
from mechlab_course.questions import Form, Quiz, declared
from tests.imports import circles, imports, modules
from tests.spoilers import asked, calls, gives_away, spoilers, text_of, told_below

ROOT = build.ROOT
SOURCES = build.sources()
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "solutions").glob("*.ipynb")])
by_source = pytest.mark.parametrize("stem", SOURCES)
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")


def shipped(stem: str) -> list:
    """The cells that a learner sees."""
    return [cell for cell in read(SOURCES[stem]) if cell.kind not in build.LEARNER_DROPS]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_nothing_is_stale():
    assert build.stale() == []


@by_source
def test_most_code_cells_are_asserted_or_compared(stem):
    code = [c for c in shipped(stem) if c.type == "code" and c.kind not in ("setup", "gpu")]
    kinds = ("exercise", "check", "quiz", "assert", "compare", "predict")
    covered = [c for c in code if c.kind in kinds or "assert " in c.source or "claim(" in c.source]
    assert len(covered) >= 0.6 * len(code), f"{len(covered)} of {len(code)}"


@by_source
def test_size_in_words_and_cells(stem):
    cells = shipped(stem)
    hints = re.compile(
        r"<details><summary>Hint.*?</details>|<summary>What we saw</summary>|</?details>", re.DOTALL
    )
    words = sum(len(hints.sub("", c.source).split()) for c in cells if c.type == "markdown")
    code = [len(c.stub().splitlines()) for c in cells if c.type == "code" and c.kind != "setup"]
    assert words <= 2500
    assert len(cells) <= 75  # 50 without the six exercises that part 0 may have, four cells each
    assert sorted(code)[len(code) // 2] <= 8
    assert max(code) <= 30


@by_source
def test_no_prediction_is_given_away_on_its_screen(stem):
    assert not (found := spoilers(stem, build.learner_notebook(SOURCES[stem])["cells"])), "\n".join(found)


@by_source
def test_no_question_is_answered_on_its_screen(stem):
    cells = build.learner_notebook(SOURCES[stem])["cells"]
    told = {id: told_below(cells, id, quiz.right) for id, quiz in declared(stem[:2], Quiz).items()}
    assert not {id: words for id, words in told.items() if words}


def test_the_lint_for_questions_sees_the_fault_of_november_2026():
    code = {"cell_type": "code", "source": 'quiz("12.c", ...)', "metadata": {}}
    text = lambda said: {"cell_type": "markdown", "source": said, "metadata": {}}
    choices = text(
        "- **a** More sentences.\n- **b** The roles exchanged: who gave now receives.\n- **c** Layers."
    )
    below = "Take these twelve, and exchange the roles in each: the giver receives, as she gave."
    assert told_below([choices, code, text(below)], "12.c", "b") == ["excha", "gave", "recei", "roles"]
    folded = f"<details><summary>When you have answered</summary>\n\n{below}\n\n</details>"
    assert not told_below([choices, code, text(folded)], "12.c", "b")


def test_the_lint_for_predictions_sees_what_it_should():
    """The faults of November 2026: the answer in a claim, in the prose, in a word, and rounded."""
    for kind, line, answer in (
        ("check", 'claim(model, "fall without 20.0", both[4, 1], says=1.9, within=0.15)', "1.9"),
        ("text", "Minus 0.23: the model", "0.228"),
        ("text", "Below zero (−0.23): the model now prefers the subject.", "-0.23"),
        ("text", "Five, one for each dimension, and they are the five most important.", "5"),
        ("check", 'assert marks.index[0] == "LIME"', "LIME"),
        ("text", "The closest are Tuesday and Sunday.", "' Tuesday', ' Sunday'"),
        ("check", "assert list(toys.values()) == [0, 1, 1, 0]", "[0, 1, 1, 0]"),
    ):
        assert gives_away(kind, line, answer), line
    for kind, line, answer in (
        ("code", "layers = [0, 2, 4, 6, 10, 18]", "4"),
        ("text", "Notebook 12 and layers 16 to 29 say more.", "16"),
        ("text", "It was 0.2 before.", "0.29"),
    ):
        assert not gives_away(kind, line, answer), line


@by_source
def test_every_prediction_has_a_form_that_its_solution_fits_and_a_reveal_that_is_shown(stem):
    cells = build.solution_notebook(SOURCES[stem])["cells"]
    forms, asked_in, shown_in = declared(stem[:2], Form), asked(cells, "predict"), asked(cells, "reveal")
    assert set(forms) == set(asked_in) == set(shown_in)
    for id, form in forms.items():
        (call,) = (c for c in calls(text_of(cells[asked_in[id]]), "predict") if c.args[0].value == id)
        assert form.noted(ast.literal_eval(call.args[1])) is not None, (
            f"{id}: {ast.unparse(call)} is no {form}"
        )
        last = ast.parse(text_of(cell := cells[shown_in[id]])).body[-1]
        assert ast.unparse(last).startswith("reveal("), f"{id}: only what stands last in a cell is shown"
        assert "source_hidden" not in cell["metadata"].get("jupyter", {}), f"{id}: the reveal is folded"


@by_source
def test_numbers_do_not_drown_the_argument(stem):
    """At most six in a hundred words of prose, names of heads and layers among them; figures hold the rest."""
    text = "\n".join(c.source for c in shipped(stem) if c.type == "markdown")
    text = re.sub(r"(?s)<details><summary>Hint.*?</details>|```.*?```", "", text)
    text = re.sub(r"(?m)^ *(#|\||Difficulty |Time: |Download).*$", "", text)
    text = re.sub(r"`[^`]*`|\$[^$]*\$|[Nn]otebooks? \d\d((,| and|, and| to) \d\d)*|Question \d\d", "x", text)
    numbers = re.findall(r"(?<![\w.,])[−-]?\d[\d,]*(?:\.\d+)?(?:\s?%)?(?!\w)", text)
    assert len(numbers) <= 0.06 * len(text.split()), (
        f"{100 * len(numbers) / len(text.split()):.1f} in a hundred"
    )


@by_source
def test_every_exercise_has_three_hints_three_mistakes_and_a_frame(stem):
    cells = read(SOURCES[stem])
    for id, cell, check, wrong in exercises(cells):
        before, after = cells[cells.index(cell) - 1], cells[cells.index(check) + 1]
        assert f"### Exercise {id} " in before.source
        assert re.search(r"Difficulty [1-5] of 5 · \d+ minutes · needs", before.source), id
        assert after.source.count("<details><summary>Hint") == 3, id
        assert len(wrong) + len(mistakes_of(id)) >= 3, id


def difficulties(stem: str) -> list[int]:
    text = "\n".join(cell.source for cell in shipped(stem))
    return [int(found) for found in re.findall(r"Difficulty ([1-5]) of 5 ·", text)]


@by_source
def test_a_notebook_has_an_open_exercise(stem):
    """Something to design or to find, and not only to write down: difficulty 4 or 5."""
    assert max(difficulties(stem)) >= 4


def test_there_is_enough_to_think_about():
    assert sum(each >= 4 for stem in SOURCES for each in difficulties(stem)) >= 25


@by_source
def test_the_header_states_time_memory_and_download(stem):
    header = shipped(stem)[0].source
    assert "**Question:**" in header and "you will be able to" in header
    stated = re.search(
        r"Time: \d+ minutes\. The cells take about (\d+) seconds in all.* Memory: [\d.]+ GB", header
    )
    assert stated and int(stated[1]) <= (120 if stem[:2] in ("41", "42") else 90)  # the two circuit notebooks
    assert "Download: " in header


@by_source
def test_headings_are_in_order_and_a_picture_comes_early(stem):
    cells = build.learner_notebook(SOURCES[stem])["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    levels = [len(marks) for marks in re.findall(r"^(#+) .+$", text, re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    early = [c.source for c in shipped(stem)[:9]]
    assert any(re.search(r"\.plot(_\w+)?\(|[Pp]icture\(", text) for text in early)


@by_source
def test_setup_is_one_identical_cell_and_no_renderer_is_set(stem):
    cells = read(SOURCES[stem])
    assert [c.kind for c in cells[:2]] == ["", "setup"]
    assert sum(c.kind == "setup" for c in cells) == 1
    text = "\n".join(c.source for c in cells)
    assert not re.search(r"renderers|set_default|manual_seed\(\)|fig\.show\(", text)
    assert "![" not in text  # pictures are made by cells, with their text twin


@by_notebook
def test_notebook_files_are_small_and_clean(path):
    limit = 1_000_000 if path.parent.name == "notebooks" else 3_000_000
    assert path.stat().st_size < limit
    notebook = json.loads(path.read_text())
    if path.parent.name == "notebooks":
        assert all(not c.get("outputs") for c in notebook["cells"])
        assert "# >>> solution" not in path.read_text()
    else:
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                assert output["output_type"] != "error"
                data = output.get("data", {})
                if "application/vnd.plotly.v1+json" in data:
                    assert "image/png" in data and "".join(data["text/plain"]).strip()


def test_links_inside_the_repository_resolve():
    broken = []
    for path in tracked():
        if path.suffix not in (".md", ".ipynb"):
            continue
        text = path.read_text()
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target = link.partition("#")[0]
            beside = ROOT if path.name == "pack.md" else path.parent  # it becomes the README of a pack
            if target and not target.startswith(("http", "mailto")) and not (beside / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert not broken


def test_no_machine_paths_and_no_weights_are_tracked():
    marks = re.compile("/" + r"(root|home/[a-z]+|Users/[a-z]+)/")
    for path in tracked():
        assert path.suffix not in (".gguf", ".bin", ".pt"), path
        trained = path.suffix == ".safetensors" and path.is_relative_to(
            ROOT / "data"
        )  # small artefacts, made by scripts
        assert path.stat().st_size < (11_000_000 if trained else 3_000_000), path
        if path.suffix in (".py", ".md", ".ipynb", ".toml", ".yml", ".txt", ".csv", ".json"):
            assert not marks.search(path.read_text()), path


def code_lines(path: Path) -> int:
    """Lines that hold code: not blank, no comment, not part of a docstring."""
    text, explained, code = path.read_text(), set(), set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            explained |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    empty = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in empty:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - explained)


AREAS = {  # glob -> (what is left out of it, most lines of code: what it had in November 2026 and about 3 %)
    "mechlab/**/*.py": (
        "pictures",
        12120,
    ),  # nulls, exact edges, half rule, AtP*, waiting: +470; two prompts written out, graphs, links to papers: +500; one prompt, matched groups: +130; planted circuits: +550; circuits of every size, a trained circuit: +220; all edges exactly, nodes of all kinds, a ranking by pruning, gated plans: +305; explanations as programs, labels: +580; interchange interventions, trained subspaces, some prompts of a run: +215
    "mechlab/pictures/**/*.py": (
        "",
        2020,
    ),  # a dark theme, explorers that outlive their kernel and fit a laptop, numbers read on any ground, names said: +175; a contrast to touch, live and on the site, graphs of neurons as figures: +680
    "course/*/checks.py": (
        "",
        7340,
    ),  # finds tried on other data, causes named only where the answer rules out others, fewer unnamed: +1,310; circuit tracing and two hops: +620; explanations on trial: +230; causal abstraction: +310; planted circuits: +350
    "mechlab_course/**/*.py": (
        "grading site",
        2650,
    ),  # nothing lost (answers kept, restored, restarts), predictions of a form, claims folded, exams that record: +730
    "mechlab_course/grading/*.py": (
        "",
        3360,
    ),  # Moodle's and Canvas's sheets, a teacher's decisions, teams, figures of the class, hints, packs by the data they need, sealed, as exams: +1,120
    "mechlab_course/site/*.py": (
        "",
        910,
    ),  # slides for a talk: +110; papers as links, where a page comes from, how to cite it: +30; neurons to turn on a page: +110
}
HOUSE = ("mechlab/**/*.py", "mechlab_course/**/*.py", "course/*/checks.py")
by_area = pytest.mark.parametrize("area", HOUSE)


@pytest.mark.parametrize("area", AREAS)
def test_no_area_grows(area):
    """Whoever raises a number says why in the commit."""
    left_out, most = AREAS[area]
    files = [path for path in ROOT.glob(area) if not set(left_out.split()) & set(path.parts)]
    assert files and sum(map(code_lines, files)) <= most


@by_area
def test_functions_fit_on_a_screen(area):
    lengths = [
        (node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
        for path in ROOT.glob(area)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths.sort(reverse=True)
    assert [each for each in lengths if each[0] > 60] == []
    tenth = lengths[: len(lengths) // 10 + 1]
    assert tenth[-1][0] <= 30, f"one in ten is longer than 30 lines: {tenth}"


@by_area
def test_every_line_is_formatted(area):
    """Nothing is kept from the formatter: a limit in lines must not be paid for in width."""
    for path in ROOT.glob(area):
        with path.open("rb") as file:
            comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
        kept = [token.start[0] for token in comments if re.search(r"fmt: *(skip|off)", token.string)]
        assert not kept, f"{path.relative_to(ROOT)}: lines {kept}"


# The rooms of the library from the bottom up; its own files, such as metrics.py, stand on the ground.
ROOMS = ("", "loading", "runs", "attribution", "discovery", "intervention", "circuits", "pictures")
RESULTS_DRAW_THEMSELVES = {"mechlab.results", "mechlab.pictures.plots"}  # the one circle there is


def floor(module: str) -> int:
    room = [*module.split("."), ""][1]
    return ROOMS.index(room) if room in ROOMS else 0


def test_the_library_knows_no_course():
    known = modules()
    for module, path in known.items():
        if module.partition(".")[0] == "mechlab" and module != "mechlab.course":  # which hands on old names
            course = [each for each in imports(path, known) if each.module.startswith("mechlab_course")]
            assert not course, f"{module}: {course}"


def test_imports_go_one_way():
    """No file of the library needs a room above its own; inside functions only to draw itself."""
    known, up = modules(), []
    for module, path in known.items():
        if not module.startswith("mechlab."):
            continue
        for each in imports(path, known):
            draws = each.module.startswith("mechlab.pictures") and (each.inside or each.for_types)
            if each.module.startswith("mechlab.") and floor(each.module) > floor(module) and not draws:
                up.append(f"{module}, line {each.line}: {each.module}")
    assert not up, "\n".join(up)


@pytest.mark.parametrize("package", ["mechlab", "mechlab_course"])
def test_no_files_need_each_other(package):
    """Imports inside functions count; the one circle there is lets results draw themselves."""
    known = modules()
    arrows = {
        module: {i.module for i in imports(path, known) if not i.for_types and i.module != module}
        for module, path in known.items()
        if module.partition(".")[0] == package
    }
    assert [circle for circle in circles(arrows) if circle != RESULTS_DRAW_THEMSELVES] == []


def test_a_room_names_its_files():
    for room in [ROOT / "mechlab_course", *(path for path in (ROOT / "mechlab_course").iterdir())]:
        if (room / "__init__.py").is_file():
            listed = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
            files = {path.name for path in room.glob("[a-z]*.py")}
            assert not {name for name in files if name not in listed}, room.name


def test_import_is_cheap():
    code = "import sys, mechlab; assert not {'torch', 'pandas', 'plotly', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


NAMES_OF = {
    "sklearn": "scikit-learn",
    "bs4": "beautifulsoup4",
    "IPython": "ipython",
    "playwright": "playwright",
}
NAMES_OF |= {"markdown_it": "markdown-it-py", "mdit_py_plugins": "mdit-py-plugins", "yaml": "pyyaml"}


def test_everything_that_is_imported_is_declared():
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    declared = {Requirement(text).name for text in listed} | set(sys.stdlib_module_names)
    imported = set()
    for path in [
        *(ROOT / "mechlab").rglob("*.py"),
        *(ROOT / "mechlab_course").rglob("*.py"),
        *ROOT.glob("course/*/*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.partition(".")[0] for name in names if name}
    imported -= {"_thread"}
    called = {NAMES_OF.get(name, name.replace("_", "-")) for name in imported} - {"mechlab", "mechlab-course"}
    assert called - declared == set()


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_what_is_pinned_serves_every_python_that_is_promised(python):
    """A stable Linux has 3.11.2: a pin that asks for 3.11.5 breaks `make lab` there, and nowhere else."""
    from packaging.specifiers import SpecifierSet

    pins = {
        line.partition("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().split()
        if "==" in line
    }
    asked = {
        each.name.lower(): each.metadata.get("Requires-Python") for each in importlib.metadata.distributions()
    }
    found = {name: asked[name] for name in pins & set(asked) if asked[name]}
    assert len(found) > 100
    assert {name for name, wanted in found.items() if not SpecifierSet(wanted).contains(python)} == set()


def test_versions_agree():
    import tomllib

    import yaml
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins[requirement.name.lower().replace("_", "-")] = next(iter(requirement.specifier)).version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name not in ("mechlab-course", "pip"):  # pip is each environment's own
            assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), text
    for name, wanted in doctor.PACKAGES.items():  # what `mechlab doctor` calls the course's versions
        assert f"{pins[name]}.".startswith(f"{wanted}."), name
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) <= {"name", "channels", "dependencies"}
    assert environment["name"] == "mechlab"
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    assert "python=3.11" in plain and "pip" in plain
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert "-c constraints.txt" in pip and any(".[lab]" in line for line in pip)


# Words of every day, too; their place in the glossary is where the course narrows them.
EVERYDAY = {"zero", "mean", "window", "strength", "complete", "feature", "features", "circuit"}
EVERYDAY |= {"neighbourhood", "attribution", "recovered", "loss"}


def glossary() -> dict[str, str]:
    """Each word of data/words.csv and the first notebook that explains it; a row with several words is taken apart."""
    rows = list(csv.DictReader((ROOT / "data" / "words.csv").open(encoding="utf-8", newline="")))
    pairs = [(name, row["notebook"]) for row in rows for name in names(row["word"])]
    return dict(sorted(pairs, key=lambda pair: pair[1], reverse=True))


def test_no_word_of_the_glossary_is_used_before_its_notebook():
    early = []
    for stem in sorted(SOURCES):
        text = "\n".join(c.source for c in read(SOURCES[stem]) if c.type == "markdown")
        text = re.sub(r"<details><summary>Hint.*?</details>|```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        sentences = [s for s in re.split(r"(?<=[.:?])\s", text) if not re.search(r"[Nn]otebooks? \d\d", s)]
        for word, number in glossary().items():
            if number > stem[:2] and len(word) > 3 and word not in EVERYDAY:
                used = re.compile(rf"(?<![\w-]){re.escape(word)}(s|es)?(?![\w-])", re.I)
                early += [
                    f"{stem[:2]} uses {word!r} ({number}): {s.strip()}" for s in sentences if used.search(s)
                ]
    assert not early, "\n".join(early)


def test_the_report_of_the_circuit_is_made_from_its_figures():
    made = runpy.run_path(str(ROOT / "data" / "make" / "ioi_report.py"))
    assert made["REPORT"].read_text(encoding="utf-8") == made["report"](), (
        "run: python data/make/ioi_report.py"
    )


def needed_from_folded(cells: list[dict]) -> set[str]:
    """Names that only cells of claims set, and a later cell reads: whoever passes over those lacks them."""
    set_before, folded, needed = set(), set(), set()
    for cell in (each for each in cells if each["cell_type"] == "code"):
        whole = symtable.symtable(text_of(cell), "cell", "exec")
        tables = [whole]
        for table in tables:
            tables += table.get_children()
        bound = {each.get_name() for each in whole.get_symbols() if each.is_assigned() or each.is_imported()}
        read = {each.get_name() for t in tables for each in t.get_symbols() if t is whole or each.is_global()}
        if cell["metadata"].get("mechlab", {}).get("kind") == "assert":
            folded |= bound - set_before
        else:
            needed |= (read - bound) & (folded - set_before)
            set_before |= bound
    return needed


@by_source
def test_a_folded_cell_can_be_passed_over(stem):
    assert not needed_from_folded(build.learner_notebook(SOURCES[stem])["cells"])


def test_the_lint_for_folded_cells_sees_the_fault_of_november_2026():
    hidden = {"mechlab": {"kind": "assert"}}
    code = lambda source, meta: {"cell_type": "code", "source": source, "metadata": meta}
    helper = code("glad = lambda text: 'glad' in text\nclaim(model, '', glad('x'), says=0)", hidden)
    use = code("def happy(texts):\n    return sum(map(glad, texts))", {})
    assert needed_from_folded([helper, use]) == {"glad"}
    assert not needed_from_folded([code("glad = bool", {}), helper, use])
    assert not needed_from_folded([helper, code("glad = bool\nglad('x')", {})])
