"""Set up the course in Colab or Kaggle: install only what is missing, and never touch what is loaded there.

The setup cell runs this file as a script, before anything of mechlab can be imported.
"""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

KEPT = ("torch", "numpy", "pandas")  # loaded before the first cell runs; replacing them breaks the session
NEEDED = ("transformer-lens", "circuitsvis", "plotly", "ipywidgets", "gguf", "jaxtyping", "einops", "captum")
NEEDED += ("scikit-learn", "safetensors", "platformdirs", "filelock", "rich", "typer")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(root: Path) -> None:
    missing = [name for name in NEEDED if installed(name) is None]
    if missing and "transformers" in sys.modules:
        raise SystemExit(
            "Restart first: transformers is already loaded, and the set-up must replace it. "
            "Choose Restart session in the menu, then run this cell again. Nothing has been downloaded."
        )
    if missing:
        keep = Path(tempfile.gettempdir()) / "mechlab-keep.txt"
        kept = "".join(f"{name}=={installed(name)}\n" for name in KEPT if installed(name))
        keep.write_text(kept, encoding="utf-8")
        print(f"Installing {len(missing)} packages that are not here yet ...")
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", str(keep), *missing], check=True)
    sys.path.insert(0, str(root))  # the course itself is used from its folder, data/ included
    os.chdir(root / "notebooks")


if __name__ == "__main__":
    main(Path(__file__).resolve().parents[2])
