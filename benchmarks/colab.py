"""Imitate Colab: a fresh environment with what Colab has, its marks, and the course's own setup cell in it.

    python -m benchmarks.colab [folder]     (`make colab`; ten minutes, 3 GB of disk, the package registry)

What Colab had installed on 2026-02-24 (its published list of packages for GPU machines; Python 3.12 there, whatever
runs this here), with two differences: torch is this course's CPU build, since the CUDA build of 2.10 is 3 GB (with it
a newer setuptools), and /content and /tmp are temporary folders. The module google.colab is a stub. The repository is cloned from this folder instead
of its public address. Then notebooks 00 and 12 run from their first cell to the last, in a kernel that has imported
numpy and pandas already, as Colab's has.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLAB = {
    "numpy": "2.0.2", "pandas": "2.2.2", "scipy": "1.16.3", "scikit-learn": "1.6.1", "matplotlib": "3.10.0",
    "transformers": "5.0.0", "tokenizers": "0.22.2", "huggingface_hub": "1.4.1", "safetensors": "0.7.0",
    "accelerate": "1.12.0", "datasets": "4.0.0", "einops": "0.8.2", "sentencepiece": "0.2.1", "protobuf": "5.29.6",
    "plotly": "5.24.1", "ipywidgets": "7.7.1", "ipykernel": "6.17.1", "ipython": "7.34.0", "jupyter_client": "7.4.9",
    "traitlets": "5.7.1", "pyzmq": "26.2.1", "tornado": "6.5.1", "rich": "13.9.4", "typer": "0.24.1",
    "filelock": "3.24.3", "platformdirs": "4.9.2", "joblib": "1.5.3", "beartype": "0.22.9", "tqdm": "4.67.3",
    "pyarrow": "18.1.0", "psutil": "5.9.5", "wandb": "0.25.0", "nbclient": "0.10.4",
    "nbformat": "5.10.4", "requests": "2.32.4", "pydantic": "2.12.3", "Jinja2": "3.1.6",
}  # fmt: skip
TORCH = "2.13.0"
KEPT = ("torch", "numpy", "pandas")
# Runs inside the environment: a notebook from top to bottom, its outputs' errors and the versions afterwards.
RUN = """
import json, sys
import nbformat
from nbclient import NotebookClient

node = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(node, timeout=600, allow_errors=True, kernel_name="python3").execute()
outputs = [o for c in node.cells if c.cell_type == "code" for o in c.outputs]
errors = [f"{o.ename}: {o.evalue}"[:500] for o in outputs if o.output_type == "error"]
text = "".join(o.get("text", "") for o in outputs if o.output_type == "stream")
kinds = sorted({k for o in outputs for k in o.get("data", {})})
print(json.dumps({"errors": errors, "text": text[:1500], "kinds": kinds}))
"""
STARTUP = "import google.colab, numpy, pandas  # what a Colab kernel has loaded before the first cell\n"


class Colab:
    """One imitated machine: an environment, a /content, a home."""

    def __init__(self, folder: Path):
        self.folder, self.content = folder, folder / "content"
        self.python = folder / "env" / "bin" / "python"
        for name in ("content", "home", "ipython/profile_default/startup"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """The environment with Colab's packages, the stub of google.colab, and the start of the kernel."""
        subprocess.run([sys.executable, "-m", "venv", str(self.folder / "env")], check=True)
        pins = [f"{name}=={version}" for name, version in COLAB.items()]
        self.pip("torch==" + TORCH)
        self.pip("torch==" + TORCH, *pins)
        (site,) = self.folder.glob("env/lib/python*/site-packages")
        (site / "google" / "colab").mkdir(parents=True, exist_ok=True)
        (site / "google" / "colab" / "__init__.py").write_text('"""A stand-in for Colab\'s own module."""\n')
        startup = self.folder / "ipython" / "profile_default" / "startup" / "00-colab.py"
        startup.write_text(STARTUP)

    def pip(self, *packages: str) -> None:
        subprocess.run([str(self.python), "-m", "pip", "install", "-q", *packages], check=True)

    def versions(self) -> dict[str, str]:
        code = "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"
        return json.loads(self.call("-c", code))

    def call(self, *arguments: str) -> str:
        """Run Python in the machine; `git clone` of the public address takes this folder instead."""
        sys.path.insert(0, str(ROOT))
        from mechlab_course.build.notebooks import address

        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("MECHLAB", "PYTHON"))
        }
        environment |= {
            "HOME": str(self.folder / "home"),
            "IPYTHONDIR": str(self.folder / "ipython"),
            "MPLBACKEND": "agg",
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": address(),
        }
        done = subprocess.run(
            [str(self.python), *arguments], cwd=self.content, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return done.stdout.strip().splitlines()[-1]

    def notebook(self, name: str, cells: int | None = None, before: str = "", after: str = "") -> dict:
        """Run a learner's notebook, or its first cells, as Colab opens it: in /content, not beside the repository."""
        (source,) = ROOT.glob(f"notebooks/{name}*.ipynb")
        node = json.loads(
            source.read_text(encoding="utf-8").replace("/tmp/mechlab", f"{self.content}/mechlab")
        )
        added = [
            [
                {
                    "cell_type": "code",
                    "id": id,
                    "metadata": {},
                    "outputs": [],
                    "execution_count": None,
                    "source": code,
                }
            ]
            for id, code in (("before", before), ("after", after))
        ]
        node["cells"] = [*added[0], *node["cells"][:cells], *added[1]]
        path = self.content / source.name
        path.write_text(json.dumps(node), encoding="utf-8")
        return json.loads(self.call("-c", RUN, str(path)))


SEEN = "from mechlab_course import progress; print('found again:', len(progress.entries()))"


def main(folder: Path) -> bool:
    """Prints what happened; True when all of it was as it should be."""
    machine, started, failed = Colab(folder), time.monotonic(), []

    def expect(what: str, holds: bool, more: object = "") -> None:
        print(f"{'ok' if holds else 'WRONG':>6}  {what}{'' if holds else f': {more}'}", flush=True)
        failed.extend([] if holds else [what])

    if not machine.python.exists():
        machine.prepare()
    print(f"an environment like Colab's, made in {time.monotonic() - started:.0f} s", flush=True)
    before = machine.versions()
    refused = machine.notebook("00", cells=3, before="import transformers")
    expect(
        "with transformers loaded it asks for a restart",
        any("Restart first" in e for e in refused["errors"]),
        refused,
    )
    expect("and installs nothing before that", machine.versions() == before)
    subprocess.run(["rm", "-rf", str(machine.content / "mechlab")], check=True)
    for name in ("00", "12"):
        started = time.monotonic()
        found = machine.notebook(name)
        expect(
            f"notebook {name} runs to its end, {time.monotonic() - started:.0f} s",
            not found["errors"],
            found["errors"],
        )
        expect(
            f"notebook {name} draws plotly figures",
            any("plotly" in k or k == "text/html" for k in found["kinds"]),
            found["kinds"],
        )
    after = machine.versions()
    for package in KEPT:
        expect(f"{package} untouched: {before[package]}", after[package] == before[package], after[package])
    changed = {
        name: (before.get(name), version) for name, version in after.items() if before.get(name) != version
    }
    print(f"installed: {', '.join(sorted(n for n, (old, _) in changed.items() if old is None))}")
    print(
        "replaced: "
        + (", ".join(f"{n} {a} by {b}" for n, (a, b) in sorted(changed.items()) if a) or "nothing")
    )
    saved = machine.content / "drive" / "progress.jsonl"
    keep = f"import os; os.environ['MECHLAB_HOME'] = {str(saved.parent)!r}"
    answer = keep + "\n"
    machine.notebook("00", before=answer)
    again = machine.notebook("00", before=answer)
    expect(
        "progress on a mounted drive is found again", saved.exists() and not again["errors"], again["errors"]
    )
    print("everything as it should be" if not failed else f"{len(failed)} wrong: {failed}")
    return not failed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary).resolve()))
