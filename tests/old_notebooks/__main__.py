"""Collect names and cells from the learners' notebooks of a commit: `python -m tests.old_notebooks 8ec4bc7`."""

import json
import subprocess
import sys

from tests.old_notebooks import FOLDER, KEPT, names


def main(commit: str) -> None:
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout
    found = set()
    for path in git("ls-tree", "--name-only", commit, "notebooks/").split():
        notebook = json.loads(git("show", f"{commit}:{path}"))
        code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        found |= set().union(*map(names, code))
        stem = path.removeprefix("notebooks/").removesuffix(".ipynb")
        if stem in KEPT:
            (FOLDER / f"{stem}.json").write_text(json.dumps(code, indent=1, ensure_ascii=False) + "\n")
    (FOLDER / "names.txt").write_text("\n".join(sorted(found)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
