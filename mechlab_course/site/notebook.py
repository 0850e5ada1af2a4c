"""One executed notebook as the text of one page."""

import html
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from bs4 import BeautifulSoup

from mechlab_course.site.outputs import Shown, rendered, text_of
from mechlab_course.site.prose import Anchors, Links, code, link_words, prose

FOOTER = re.compile(r"\A(Previous: \[|Next: \[|The only notebook so far\.)")
NAMED = re.compile(r"\bml\.((?:\w+\.)*\w+)|^def (\w+)|^(?:from|import) (mechlab[\w.]*)", re.MULTILINE)


@dataclass
class Page:
    """A page before it meets the template."""

    file: str
    title: str
    number: str = ""  # of a notebook
    question: str = ""
    needs: str = ""  # HTML: "Time: 20 minutes. ..."
    body: str = ""
    contents: list[tuple[int, str, str]] = field(default_factory=list)  # level, anchor, heading
    sections: list[tuple[str, str, str, str]] = field(
        default_factory=list
    )  # anchor, heading, prose, more words
    files: dict[str, bytes] = field(default_factory=dict)
    source: str = ""  # where it comes from in the repository
    download: str = ""
    picture: str = ""  # beside the title
    lookup: bool = False  # a page whose tables are looked things up in, row by row

    @property
    def stem(self) -> str:
        return self.file.removesuffix(".html")

    @property
    def summary(self) -> str:
        """What search engines and those who pass a link on show of the page."""
        return self.question or shortened(next((said for _, _, said, _ in self.sections if said), ""), 200)


def notebook_page(solved: Path, learner: Path, links: Links) -> Page:
    """The page of a notebook, from its executed solution and from the notebook that learners get."""
    stem, number = solved.stem, solved.stem[:2]
    cells = json.loads(solved.read_text(encoding="utf-8"))["cells"]
    stubs = {  # by the number of the exercise, which outlives an edit that the solution has not been run for
        c["metadata"]["mechlab"]["id"]: text_of(c["source"])
        for c in json.loads(learner.read_text(encoding="utf-8"))["cells"]
        if c["metadata"].get("mechlab", {}).get("kind") == "exercise"
    }
    page = Page(f"{stem}.html", stem, number, source=f"course/{stem}/notebook.py")
    page.download = f"notebooks/{stem}.ipynb"
    page.files[page.download] = learner.read_bytes()
    shown, linked, parts = Shown(stem, links, Anchors()), set(), []
    for cell in cells:
        source = text_of(cell["source"])
        if cell["cell_type"] == "code":
            parts.append(_code(cell, stubs, shown))
            if cell["metadata"].get("mechlab", {}).get("kind") != "setup":
                _add_words(page, names(source))
        elif not FOOTER.match(source):
            tree = prose(source, links, "notebooks", shown.anchors)
            link_words(tree, links, number, linked)
            if not parts:
                _take_head(tree, page)
            add_sections(tree, page)
            parts.append(str(tree))
    page.body, page.files = "\n".join(parts), page.files | shown.files
    return page


def shortened(text: str, most: int) -> str:
    """The first words of a text."""
    return text if len(text) <= most else text[:most].rpartition(" ")[0] + " …"


def names(source: str) -> str:
    """The functions that a cell names: what somebody who searches for `ml.head_scores` hopes to find."""
    return " ".join(name for found in NAMED.findall(source) for name in found if name)


def _take_head(tree: BeautifulSoup, page: Page) -> None:
    """Title, question and what it takes leave the text, and the link to Colab; the template shows them."""
    heading = tree.find("h1")
    page.title = heading.get_text().strip().removeprefix(page.number).strip()
    heading.extract()
    for paragraph in tree.find_all("p"):
        text = paragraph.get_text().strip()
        if text.startswith("Question:"):
            page.question = text.removeprefix("Question:").strip()
        elif text.startswith("Time:"):
            page.needs = paragraph.decode_contents()
        elif text != "Open in Colab":
            continue
        paragraph.extract()
    page.sections.append(("main", page.title, page.question, page.number))


def add_sections(tree: BeautifulSoup, page: Page) -> None:
    """Note headings for the table of contents, and words under each for the search."""
    for tag in tree.find_all(["h2", "h3", "h4", "p", "li", "td", "th"]):
        text = " ".join(tag.get_text(" " if tag.name == "td" else "").split())
        if tag.name in ("h2", "h3", "h4"):
            page.sections.append((tag["id"], text, "", ""))
            if tag.name != "h4":
                page.contents.append((int(tag.name[1]), tag["id"], text))
        elif tag.find(["p", "li"]) is None:
            _add_words(page, text, told=tag.find_parent("details") is None)


def _add_words(page: Page, words: str, told: bool = False) -> None:
    """Add words to the section that is open; those that are told are shown with a result."""
    anchor, heading, said, more = page.sections.pop()
    said, more = (f"{said} {words}".strip(), more) if told else (said, f"{more} {words}".strip())
    page.sections.append((anchor, heading, said, more))


def _code(cell: dict, stubs: dict[str, str], shown: Shown) -> str:
    """A code cell with its outputs, each kind in its own way: what gives an answer away is folded."""
    source, meta = text_of(cell["source"]), cell["metadata"].get("mechlab", {})
    kind, outputs = meta.get("kind", ""), list(rendered(cell, shown))
    out = "".join(made for _, made in outputs)
    if kind == "setup":
        return folded("setup", "Setup, the same in every notebook", code(source) + out)
    if kind == "exercise":
        answer = folded("solution", f"Solution of {html.escape(meta['id'])}", code(source) + out)
        stub = code(stubs.get(meta["id"], "# This exercise has gone from the learner's notebook."))
        return f'<div class="exercise"><p class="label">Your turn</p>{stub}{answer}</div>'
    if kind == "check":
        label = '<p class="label">What the check says of the solution</p>'
        return f'<div class="check">{code(source)}{label}{out}</div>'
    if kind == "quiz":
        return folded("answer", "Answer", f'{code(source)}<div class="out">{out}</div>')
    if kind == "predict":
        return folded("answer", "What was predicted here", code(source) + out)
    if kind == "assert":
        checked = "".join(made for what, made in outputs if what == "text")
        rest = "".join(made for what, made in outputs if what != "text")
        return folded("numbers", "The numbers in the text, checked", code(source) + checked) + rest
    label = '<p class="label">Only with a GPU</p>' if kind == "gpu" else ""
    return f'<div class="cell">{label}{code(source)}<div class="out">{out}</div></div>'


def folded(name: str, summary: str, content: str) -> str:
    return f'<details class="{name}"><summary>{summary}</summary>\n{content}\n</details>'
