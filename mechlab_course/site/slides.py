"""Slides for a talk, one file a part of the course: what its notebooks ask, each section, each picture.

Made of the executed notebooks. A picture comes with the next key, so that a class can guess first. A file
holds all it needs, and prints as one page a slide.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mechlab_course.folders import ROOT
from mechlab_course.site.outputs import text_of
from mechlab_course.site.prose import Anchors, Links, prose

_HEADING = re.compile(r"^##+ +(.+)$", re.MULTILINE)
_FOLDED = re.compile(r"<details>.*?</details>|```.*?```", re.DOTALL)
_END = re.compile(r"(?<=[.?!:])[*_]*\s+(?=[*_`\"“(]*[A-Z0-9])")
_TALK = re.compile(r"(?!\*\*Question |Difficulty \d|Previous: |Next: )[*_`\"“]*\w")  # no list, table, formula
DESK = ("Recap", "A question", "Finding your way", "How the exercises work")  # for the learner's own desk
SHORT = 60  # characters; a shorter sentence is shown with the one before it
UNTOLD = ("exercise", "check", "quiz", "predict", "reveal", "assert")  # what a learner does, and what checks


@dataclass(frozen=True)
class Slide:
    """What is seen at once. picture: base64 of a PNG; words: what it shows, for those who cannot see it."""

    title: str
    sentence: str = ""
    picture: str = ""
    words: str = ""
    kind: str = "section"  # or "notebook", "part"

    @property
    def content(self) -> tuple[str, str]:
        """Title and sentence as HTML."""
        return _html(self.title), _html(self.sentence)


def decks(root: Path = ROOT) -> dict[str, bytes]:
    """Each file of slides: name -> content."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.get_template("slides.html")
    made = {}
    for part, question, stems in parts((root / "README.md").read_text(encoding="utf-8")):
        slides = [Slide(part, question, kind="part")]
        for stem in stems:
            path = root / "solutions" / f"{stem}.ipynb"
            slides += slides_of(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []
        name = re.sub(r"\W+", "-", part.lower()).strip("-")
        made[f"{name}.html"] = template.render(title=part, slides=slides).encode()
    return made


def parts(readme: str) -> Iterator[tuple[str, str, list[str]]]:
    """(name, question, notebooks) of each part, from the table of the course."""
    for name, notebooks, question in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", readme, re.MULTILINE):
        if stems := re.findall(r"\]\(notebooks/(\w+)\.ipynb\)", notebooks):
            yield re.sub(r"^(\d) ", r"Part \1: ", _capital(name)), _capital(question), stems


def slides_of(notebook: dict) -> list[Slide]:
    """Its question, then a slide for each section and each picture.

    A section says what it begins with, a picture the sentence that leads to it.
    """
    head = text_of(notebook["cells"][0]["source"])
    question = re.search(r"\*\*Question:\*\* (.*?)\n\n", head, re.DOTALL)
    asked = _capital(question[1]) if question else ""
    made, lead = [Slide(head.partition("\n")[0].removeprefix("# "), asked, kind="notebook")], ""
    for cell in notebook["cells"][1:]:
        if cell["cell_type"] == "markdown":
            for title, first, last in _leads(text_of(cell["source"])):
                made += [Slide(title, first)] if title else []
                lead = last if title else last or lead
        elif cell["metadata"].get("mechlab", {}).get("kind") not in UNTOLD:
            for picture, words in _pictures(cell):
                last = made[-1]
                if last.kind == "section" and not last.picture:
                    made.pop()  # the section has a picture now
                made.append(Slide(last.title, lead, picture, words))
    return [each for each in made if each.picture or (each.sentence and each.title not in DESK)]


def _leads(text: str) -> Iterator[tuple[str, str, str]]:
    """(heading, first sentence, last sentence) of each part of a cell that is no exercise; "" for none."""
    parts = _HEADING.split(_FOLDED.sub("", text))
    for title, under in [("", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]:
        if not title.startswith("Exercise "):
            yield title, *_ends(under)


def _ends(text: str) -> tuple[str, str]:
    """The first sentence of a text and the last one; a short one with its neighbour, none in brackets."""
    paragraphs = (each.strip() for each in re.split(r"\n\s*\n", text))
    told = (" ".join(each.split()) for each in paragraphs if _TALK.match(each))
    said = [each for paragraph in told for each in _END.split(paragraph) if each[:1] != "("]
    cut = lambda some, one: " ".join(some if len(one) < SHORT else [one])
    return (cut(said[:2], said[0]), cut(said[-2:], said[-1])) if said else ("", "")


def _pictures(cell: dict) -> Iterator[tuple[str, str]]:
    """(PNG as base64, what it shows) of each picture that a cell left."""
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield "".join(text_of(data["image/png"]).split()), text_of(data.get("text/plain", ""))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _html(text: str) -> str:
    """A line of markdown as HTML: code and formulas as on the site, links as plain text."""
    paragraph = prose(text, Links({}), "", Anchors()).find("p")
    return paragraph.decode_contents() if paragraph else ""
