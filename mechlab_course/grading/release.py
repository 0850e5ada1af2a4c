"""The pack for learners: a folder or a zip file with all they need and nothing that is the teacher's."""

import json
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from mechlab_course.folders import ROOT

TOP = ("LICENSE", "Makefile", "constraints.txt", "environment.yml", "pyproject.toml", ".gitignore")
NOT_FOR_LEARNERS = ("docs/teaching.md", "docs/contributing.md", "docs/make_picture.py", "data/make")
ANSWERS = ("notebook.py", "tried.txt")  # in course/: solutions, and what was tried on the checks
JUNK = ("__pycache__", ".ipynb_checkpoints", ".DS_Store")
_ANSWER = re.compile(r"<details><summary>Hint 3[^<]*</summary>.*?</details>\n?", re.DOTALL)


class ReleaseError(ValueError):
    """The pack cannot be made; the text says why."""


def release(out: Path, only: list[str], *, answers: bool = True) -> list[str]:
    """Write the pack and return the names of its files. answers: keep the hints with the worked answers."""
    if out.exists() and out.suffix != ".zip":
        raise ReleaseError(f"{out} is there already. Remove it, or choose another name.")
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    unknown = set(only) - {path.name[:2] for path in notebooks}
    if unknown:
        raise ReleaseError(f"There is no notebook {', '.join(sorted(unknown))}.")
    chosen = [path for path in notebooks if not only or path.name[:2] in [*only, "00"]]
    pack = {f"notebooks/{path.name}": _notebook(path, chosen, answers) for path in chosen}
    pack["README.md"] = _without_links(_readme(), {p.stem for p in chosen}).encode()
    for name in TOP:
        if (ROOT / name).is_file():
            pack[name] = (ROOT / name).read_bytes()
    for folder in ("mechlab", "mechlab_course", "data", "docs", "course"):
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            left_out = (
                name.startswith(NOT_FOR_LEARNERS)
                or name.endswith(ANSWERS)
                or any(part in JUNK for part in path.parts)
            )
            left_out = left_out or (folder == "course" and path.name in ANSWERS)
            if path.is_file() and not path.is_symlink() and not left_out:
                pack[name] = path.read_bytes()
    _write(out, pack)
    return sorted(pack)


def _notebook(path: Path, chosen: list[Path], answers: bool) -> bytes:
    """The learner's notebook; links to notebooks that are not in the pack become plain text."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        kind = cell["metadata"].get("mechlab", {}).get("kind", "")
        if kind in ("wrong", "hidden") or "# >>> solution" in "".join(cell["source"]):
            raise ReleaseError(f"{path.name} holds what is not for learners. Run `mechlab build`.")
        if cell["cell_type"] == "markdown":
            text = _without_links("".join(cell["source"]), {p.stem for p in chosen})
            cell["source"] = (text if answers else _ANSWER.sub("", text)).splitlines(True)
    return (json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _without_links(text: str, stems: set[str]) -> str:
    link = re.compile(r"\[([^\]]*)\]\((?:notebooks/)?(\d\d_\w+)\.ipynb\)")
    return link.sub(lambda m: m[0] if m[2] in stems else m[1], text)


def _readme() -> str:
    """The README without what only the repository has: tests, solutions, the part for contributors."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^## For (contributors|teachers)\n.*?(?=^## |^MIT licence)", "", text)
    text = re.sub(r"(?m)^make test .*\n", "", text)
    text = re.sub(r"(?s)and for the tests `.*?`\.\n\n", "\n", text)
    text = re.sub(r"; for the tests\n`.*?`\.\n", ".\n", text)
    text = re.sub(r"Solved notebooks are\s+in `solutions/`; words are", "Words are", text)
    return text.replace("Clone the repository and run the first one inside it.", "Run it inside this folder.")


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
