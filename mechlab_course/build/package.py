"""What goes to the package index: `make release TAG=v0.1.0` builds it, if nothing stands against it."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from mechlab_course.console import say
from mechlab_course.folders import ROOT


def problems(tag: str = "", root: Path = ROOT) -> Iterator[str]:
    """What must be put right before a release, a sentence each. tag: the version to be, such as v0.1.0."""
    from mechlab_course.build import notebooks

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version, address = project["version"], project["urls"]["Repository"]
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if "OWNER" in address:
        yield f"pyproject.toml still says {address}. Write the real address, then run `mechlab build`."
    if tag.removeprefix("v") not in ("", version):
        yield f"The tag is {tag}, and pyproject.toml says version {version}."
    if f"version: {version}" not in citation or address not in citation:
        yield f"CITATION.cff does not name version {version} and {address}."
    if f'__version__ = "{version}"' not in (root / "mechlab" / "__init__.py").read_text(encoding="utf-8"):
        yield f"mechlab/__init__.py does not say {version}."
    if not re.search(rf"^## {re.escape(version)}\b(?!.*not yet released)", changes, re.MULTILINE):
        yield f"CHANGELOG.md has no section of {version}, or calls it not yet released."
    if "Until the first release" in (root / "README.md").read_text(encoding="utf-8"):
        yield "README.md still says what holds until the first release."
    yield from notebooks.stale()
    git = ["git", "status", "--porcelain"]
    changed = subprocess.run(git, cwd=root, capture_output=True).stdout
    if changed:
        yield f"{len(changed.splitlines())} files differ from the last commit, or are not in it."


def main(tag: str = "") -> int:
    """Say what is wrong, or build; the exit status."""
    found = list(problems(tag))
    for line in found:
        say(line)
    if found:
        say(f"Nothing was built: {len(found)} to put right.")
        return 1
    return subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", "dist"], cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
