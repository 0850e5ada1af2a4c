"""The pack for learners: a folder or a zip file with all they need and nothing that is the teacher's.

Data that its notebooks do not open stays out (opened.py), and so does what answers them, if asked
(withheld.py).
"""

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mechlab_course.folders import ROOT
from mechlab_course.grading import opened, withheld
from mechlab_course.grading.withheld import EXAM, FULL, kind, text_of

TOP = ("LICENSE", "Makefile", "constraints.txt", "environment.yml", "pyproject.toml", ".gitignore")
FOLDERS = ("mechlab", "mechlab_course", "docs")
NOT_FOR_LEARNERS = ("docs/teaching.md", "docs/contributing.md", "docs/make_picture.py")
NOT_FOR_LEARNERS += ("docs/heads.png", "mechlab_course/site/social.png")  # the repository's and the site's
JUNK = ("__pycache__", ".ipynb_checkpoints", ".DS_Store")
_EXAM = """
**This is an exam.** Write your name into the cell below the setup, and run it. Checks and questions only
record what you answer: nothing tells whether it is right. Save, and hand in the notebooks of
`work/notebooks/`.
"""


class ReleaseError(ValueError):
    """The pack cannot be made; the text says why."""


def release(out: Path, only: list[str], *, kept: str = FULL) -> list[str]:
    """Write the pack and return the names of its files. kept: which of withheld.py's three packs it is."""
    if out.exists() and out.suffix != ".zip":
        raise ReleaseError(f"{out} is there already. Remove it, or choose another name.")
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    unknown = set(only) - {path.name[:2] for path in notebooks}
    if unknown:
        raise ReleaseError(f"There is no notebook {', '.join(sorted(unknown))}.")
    pack = _pack([path for path in notebooks if not only or path.name[:2] in [*only, "00"]], kept)
    _write(out, pack)
    return sorted(pack)


def _pack(chosen: list[Path], kept: str) -> dict[str, bytes]:
    """Each file by its name. The data is found from the checks themselves, whatever stands for them."""
    texts, code = {"README.md": _readme(chosen, kept)}, []
    for path in chosen:
        notebook = _notebook(path, {each.stem for each in chosen}, kept)
        cells, folder = notebook["cells"], ROOT / "course" / path.stem
        code += [*map(text_of, cells), (folder / "checks.py").read_text(encoding="utf-8")]
        try:
            checks = withheld.checks(folder, cells, kept)
        except withheld.WithheldError as error:
            raise ReleaseError(str(error)) from None
        texts |= {f"course/{path.stem}/{name}": text for name, text in checks.items()}
        if kept == EXAM:
            notebook["cells"] = withheld.as_exam(cells)
        made = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        texts[f"notebooks/{path.name}"] = f"{made}\n"
    data = [name.removeprefix("data/") for name in _files("data") if not name.startswith("data/make/")]
    names = [name for name in TOP if (ROOT / name).is_file()]
    names += [f"data/{name}" for name in opened.needed(code, data)]
    left_out = NOT_FOR_LEARNERS if kept == FULL else (*NOT_FOR_LEARNERS, *withheld.WITH_ANSWERS)
    names += [name for folder in FOLDERS for name in _files(folder) if name not in left_out]
    return {name: (ROOT / name).read_bytes() for name in names} | {
        name: text.encode() for name, text in texts.items()
    }


def _files(folder: str) -> Iterator[str]:
    """Names of the files in a folder of the course, in order."""
    for path in sorted((ROOT / folder).rglob("*")):
        if path.is_file() and not path.is_symlink() and not set(JUNK) & set(path.parts):
            yield path.relative_to(ROOT).as_posix()


def _notebook(path: Path, stems: set[str], kept: str) -> dict:
    """The learner's notebook; links to notebooks that are not in the pack become plain text."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if kind(cell) in ("wrong", "hidden") or "# >>> solution" in text_of(cell):
            raise ReleaseError(f"{path.name} holds what is not for learners. Run `mechlab build`.")
        if cell["cell_type"] == "markdown":
            text = _without_links(withheld.prose(text_of(cell), kept), stems)
            cell["source"] = text.splitlines(True)
    return notebook


def _without_links(text: str, stems: set[str]) -> str:
    link = re.compile(r"\[([^\]]*)\]\((\d\d_\w+)\.ipynb\)")
    return link.sub(lambda m: m[0] if m[2] in stems else m[1], text)


def _readme(chosen: list[Path], kept: str) -> str:
    """What the notebooks are, how to begin, and what to do when something is odd."""
    heads = {path: text_of(json.loads(path.read_text(encoding="utf-8"))["cells"][0]) for path in chosen}
    titles = {path: head.partition("\n")[0].removeprefix("# ") for path, head in heads.items()}
    listed = "\n".join(f"- [{title}](notebooks/{path.name})" for path, title in titles.items())
    template = Path(__file__).with_name("pack.md").read_text(encoding="utf-8")
    return template.replace("{notebooks}", listed).replace("{exam}", _EXAM * (kept == EXAM))


def _write(out: Path, pack: dict[str, bytes]) -> None:
    """Whole or not at all; a zip file of the same content has the same bytes, whenever it is made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".pack-") as scratch:
        made = Path(scratch) / "mechlab"
        if out.suffix == ".zip":
            with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in sorted(pack):
                    entry = zipfile.ZipInfo(f"mechlab/{name}", (1980, 1, 1, 0, 0, 0))
                    entry.external_attr, entry.create_system = 0o644 << 16, 3
                    archive.writestr(entry, pack[name], zipfile.ZIP_DEFLATED)
            made.replace(out)
            return
        for name, data in pack.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(data)
        shutil.move(made, out)
