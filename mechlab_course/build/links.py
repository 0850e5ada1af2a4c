"""Where this repository lies, and what lies there with it: "" until whoever publishes it fills in OWNER."""

import tomllib

from mechlab_course.folders import ROOT

GITHUB = "https://github.com/"


def address() -> str:
    """The repository's address, written once, in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["urls"]["Repository"]


def published() -> str:
    """The address, once its owner is filled in."""
    return "" if "/OWNER/" in address() else address()


def on_github() -> str:
    """Owner and name, such as "somebody/mechlab", of a repository on GitHub."""
    return published().removeprefix(GITHUB) if published().startswith(GITHUB) else ""


def colab(notebook: str) -> str:
    """Where a learner's notebook opens in Colab."""
    page = f"github/{on_github()}/blob/main/notebooks/{notebook}.ipynb"
    return f"https://colab.research.google.com/{page}" if on_github() else ""


def pages() -> str:
    """Where the release workflow puts the web site: the owner's GitHub Pages."""
    owner, _, name = on_github().partition("/")
    return f"https://{owner.lower()}.github.io/{name}/" if owner else ""
