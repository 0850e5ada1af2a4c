"""What `make check` runs: from the files that changed to the tests that are worth running now, each with a reason."""

import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.imports import ROOT, imports, modules

NEVER = {
    "tests/test_browser.py",
    "tests/test_exercises.py",
}  # `make test` has them; exercises go notebook by notebook
BY_STEM = (
    "tests/test_lints.py",
    "tests/test_learner.py",
    "tests/test_cells.py",
)  # tests with a case a notebook
BY_NAME = {  # files without a test of their name: what looks at them
    "pyproject.toml": "tests/test_lints.py",
    "constraints.txt": "tests/test_lints.py",
    "environment.yml": "tests/test_lints.py",
    "data/words.csv": "tests/test_lints.py",
    "Makefile": "tests/test_readme.py",
    "README.md": "tests/test_readme.py",
    "CITATION.cff": "tests/test_readme.py",
    "docs/contributing.md": "tests/test_readme.py",
    "docs/teaching.md": "tests/test_readme.py",
    "docs/beyond.md": "tests/test_pages.py",
    "docs/tools.md": "tests/test_pages.py",
    "docs/reading.md": "tests/test_pages.py",
}


@dataclass
class Chosen:
    """What to run: each test file and each notebook with why, and what is left to `make test`."""

    tests: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    notebooks: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    left: set[str] = field(default_factory=set)


def changed_files(base: str = "HEAD", root: Path = ROOT) -> list[str]:
    """Files that differ from a commit in the working tree, those that git does not know yet among them."""
    asked = (
        ["git", "diff", "--name-only", "--no-renames", "-z", base, "--"],
        ["git", "ls-files", "--others", "--exclude-standard", "-z"],
    )
    done = [subprocess.run(command, cwd=root, capture_output=True, text=True) for command in asked]
    if done[0].returncode:
        raise ValueError(f"git knows no {base}: {done[0].stderr.strip()}")
    return sorted({name for each in done for name in each.stdout.split("\0") if name})


def choose(files: Iterable[str], root: Path = ROOT) -> Chosen:
    """Tests and notebooks for these files, from paths and a scan of imports; nothing is imported or run."""
    chosen, users = Chosen(), _users(root)
    for file in files:
        path = PurePosixPath(file)
        top = path.parts[0]
        if (top == "course" and len(path.parts) > 2) or top in ("notebooks", "solutions"):
            chosen.notebooks[path.parts[1].removesuffix(".ipynb")].add(file)
            continue
        tests = _tests_of(path, users, root)
        for test in tests - NEVER:
            chosen.tests[test].add(file)
        if tests & NEVER or not tests:
            chosen.left.add(file)
    chosen.notebooks = {stem: why for stem, why in chosen.notebooks.items() if _exists(stem, root)}
    return chosen


def _tests_of(path: PurePosixPath, users: dict[str, set[str]], root: Path) -> set[str]:
    """The test of a file's name, those that import it, and those that are known to look at it."""
    found = {f"tests/test_{path.stem}.py"} if path.parts[0].startswith("mechlab") else set()
    found |= users.get(str(path), set()) | {BY_NAME.get(str(path), "")}
    if (
        path.parts[0].startswith("mechlab") and path.suffix != ".py"
    ):  # a style sheet, a template, a list of names
        found |= {
            test
            for file, tests in users.items()
            if PurePosixPath(file).parent == path.parent
            for test in tests
        }
    if path.match("tests/test_*.py"):
        found.add(str(path))
    if path.suffix == ".md":
        found.add("tests/test_lints.py")  # its links
    return {test for test in found if (root / test).is_file()}


def _users(root: Path) -> dict[str, set[str]]:
    """For each file of the house the tests that import it themselves, or by a helper of the tests."""
    known = modules(root)
    direct = {name: _imported(path, known) for name, path in known.items()}
    users: dict[str, set[str]] = defaultdict(set)
    for name, path in known.items():
        if path.name.startswith("test_"):
            helpers = {each for each in direct[name] if each.startswith("tests.")}
            for module in direct[name].union(*(direct[helper] for helper in helpers)):
                users[known[module].relative_to(root).as_posix()].add(path.relative_to(root).as_posix())
    return users


def _imported(path: Path, known: dict[str, Path]) -> set[str]:
    """What a file imports; nothing while it is no Python, which the style stage says."""
    try:
        return {each.module for each in imports(path, known)}
    except SyntaxError:
        return set()


def _exists(stem: str, root: Path) -> bool:
    return (root / "course" / stem / "notebook.py").is_file()
