"""Where this repository lies, and what lies there with it: "" until whoever publishes it fills in OWNER."""

import tomllib

from mechlab_course.folders import ROOT

GITHUB = "https://github.com/"


def address() -> str:
    """The repository's address, written once, in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["urls"]["Repository"]


def owned(address: str) -> str:
    """An address, once its owner is filled in; "" before."""
    return "" if "/OWNER/" in address else address


def published() -> str:
    """The repository's address, once its owner is filled in."""
    return owned(address())


def on_github() -> str:
    """Owner and name, such as "somebody/mechlab", of a repository on GitHub."""
    known = published()
    return known.removeprefix(GITHUB) if known.startswith(GITHUB) else ""


def colab(notebook: str) -> str:
    """Where a learner's notebook opens in Colab."""
    known = on_github()
    page = f"github/{known}/blob/main/notebooks/{notebook}.ipynb"
    return f"https://colab.research.google.com/{page}" if known else ""


def pages() -> str:
    """Where the release workflow puts the web site: the owner's GitHub Pages."""
    owner, _, name = on_github().partition("/")
    return f"https://{owner.lower()}.github.io/{name}/" if owner else ""
