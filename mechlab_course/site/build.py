"""Put the site together: pages, assets, search index. The same repository gives the same bytes."""

import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mechlab import reference
from mechlab_course.build import links as lies
from mechlab_course.folders import ROOT
from mechlab_course.site.cite import bibtex
from mechlab_course.site.notebook import Page, add_sections, notebook_page
from mechlab_course.site.prose import Anchors, Links, code, link_words, prose
from mechlab_course.site.search import index
from mechlab_course.site.turning import turning_pages

HERE = Path(__file__).parent
ASSETS = ("site.css", "site.js", "turning.js", "icon.svg", "social.png")
LOOK_UP = ("glossary.md", "hook_map.md")  # of docs/: where people look things up
# Words of the glossary that are words of every day, too: to link them would lead astray.
EVERYDAY = {"complete", "completeness", "strength", "feature", "baseline", "parameter", "recovered"}
EVERYDAY |= {"paraphrase", "corruption", "neighbourhood", "agreement", "replacement", "indirect effect"}


@dataclass
class Part:
    """A row of the course map."""

    name: str
    question: str
    pages: list[Page] = field(default_factory=list)


def write(files: dict[str, bytes], out: Path) -> None:
    """Write the files into the folder `out`; what an earlier run left there and is no longer wanted goes."""
    if (out / "assets" / "site.js").exists():
        for old in [*out.glob("*.html"), *out.glob("figures/*"), *out.glob("notebooks/*")]:
            if old.relative_to(out).as_posix() not in files:
                old.unlink()
    for name, content in files.items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def site(root: Path = ROOT) -> dict[str, bytes]:
    """Every file of the site: name -> content."""
    executed = [
        path
        for path in sorted((root / "solutions").glob("[0-9][0-9]_*.ipynb"))
        if (root / "notebooks" / path.name).exists()
    ]
    documents = sorted((root / "docs").glob("*.md"))
    links = _links(root, executed, documents)
    lessons = [notebook_page(path, root / "notebooks" / path.name, links) for path in executed]
    texts = [_document(path, links) for path in documents]
    home, parts = _home(root, lessons, links)
    touch = turning_pages(root)
    texts += touch
    pages = [home, *lessons, *texts]
    files = {f"assets/{name}": (HERE / name).read_bytes() for name in ASSETS}
    files |= _drawers()
    files["assets/search-index.js"] = index(pages).encode()
    files |= {name: (root / path).read_bytes() for path, name in links.files.items()}
    template = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")
    shared = {
        "parts": parts,
        "texts": texts,
        "first": lessons[:1],
        "touch": touch,
        "links": links,
        "lies": lies,
    }
    for page in pages:
        place = lessons.index(page) if page in lessons else None
        around = {
            "before": lessons[place - 1] if place else None,
            "after": lessons[place + 1] if place is not None and place + 1 < len(lessons) else None,
            "part": next((part.name for part in parts if page in part.pages), ""),
        }
        files |= page.files
        files[page.file] = template.render(page=page, **shared, **around).encode()
    return files


def _drawers() -> dict[str, bytes]:
    """The scripts that draw figures and attention views; pages load them when needed."""
    plotly = Path(find_spec("plotly").origin).parent / "package_data" / "plotly.min.js"
    views = Path(find_spec("circuitsvis").origin).parent / "dist" / "cdn" / "iife.js"
    views = views.read_bytes() + b";window.CircuitsVis=CircuitsVis;\n"
    return {"assets/plotly.min.js": plotly.read_bytes(), "assets/circuitsvis.js": views}


def _links(root: Path, executed: list[Path], documents: list[Path]) -> Links:
    pages = {"README.md": "index.html"}
    for path in executed:
        pages |= {f"{folder}/{path.name}": f"{path.stem}.html" for folder in ("notebooks", "solutions")}
    pages |= {f"docs/{path.name}": f"{path.stem}.html" for path in documents}
    pictures = {f"docs/{path.name}": f"figures/{path.name}" for path in sorted((root / "docs").glob("*.png"))}
    links = Links(pages, pictures, lies.published(), papers=reference.addresses())
    if (root / "docs" / "glossary.md").exists():
        links.terms = list(_terms((root / "docs" / "glossary.md").read_text(encoding="utf-8")))
    return links


def _terms(glossary: str):
    """(word, meaning, notebook, anchor) for each word worth linking, as `_document` names the anchors."""
    anchors = Anchors()
    for row in re.findall(r"^\| (.+) \| (.+) \| (\d\d) \|$", glossary, re.MULTILINE):
        anchor = anchors.new(f"word {row[0]}")
        for word in row[0].split(", "):
            several = " " in word or "-" in word or len(word) > 7 or (len(word) > 1 and word.isupper())
            if "(" not in row[0] and several and word.lower() not in EVERYDAY | {"or", "and"}:
                yield word, row[1].replace("`", "").replace("*", ""), row[2], anchor


def _document(path: Path, links: Links) -> Page:
    """A page of docs/."""
    page = Page(f"{path.stem}.html", path.stem, source=f"docs/{path.name}", lookup=path.name in LOOK_UP)
    anchors = Anchors()
    tree = prose(path.read_text(encoding="utf-8"), links, "docs", anchors)
    heading = tree.find("h1")
    page.title = heading.get_text()
    heading.extract()
    page.sections.append(("main", page.title, "", ""))
    if not page.lookup:
        link_words(tree, links, "99", set())
    add_sections(tree, page)
    for row in tree.select("tbody tr") if page.lookup else ():
        _entry(row, page, links, anchors)
    page.body = str(tree)
    return page


def _entry(row: Tag, page: Page, links: Links, anchors: Anchors) -> None:
    """A row that is looked up: it can be linked to and found, and the number of a notebook leads there."""
    first, *others = row.find_all("td")
    row["id"] = anchors.new(f"word {first.get_text()}")
    first.name, first["scope"] = "th", "row"
    told = [cell.get_text().strip() for cell in others]
    lesson = links.notebook(told[-1]) if re.fullmatch(r"\d\d", told[-1]) else None
    if lesson:
        told[-1] = f"(notebook {told[-1]})"
        others[-1].string.wrap(BeautifulSoup("", "html.parser").new_tag("a", href=lesson))
    page.sections.append((row["id"], first.get_text(), " ".join(told), ""))


def _named(part: str) -> str:
    """ "2 discovery" as "Part 2: discovery"."""
    number, _, name = part.partition(" ")
    return f"Part {number}: {name}" if number.isdigit() else part.capitalize()


def _home(root: Path, lessons: list[Page], links: Links) -> tuple[Page, list[Part]]:
    """README.md; its course map is made into one that names every notebook there is."""
    text = (root / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition("\n## The course\n")
    rows = re.findall(r"^\|(.+)\|(.+)\|(.+)\|$", rest, re.MULTILINE)
    rest = re.sub(r"\A\s*(\|.*\|\n)+", "", rest)
    parts, files = [], {}
    for name, notebooks, question in rows[2:]:
        stems = re.findall(r"\]\(notebooks/(\w+)\.ipynb\)", notebooks)
        if stems:
            parts.append(Part(_named(name.strip()), question.strip()))
            files |= {f"{stem}.html": parts[-1] for stem in stems}
    parts = parts or [Part("", "")]
    part = parts[0]
    for lesson in lessons:  # one that the README does not name yet stands with the one before it
        part = files.get(lesson.file, part)
        part.pages.append(lesson)
    anchors = Anchors({"course", "cite"})
    head, tail = (prose(piece, links, "", anchors) for piece in (before, rest))
    page = Page("index.html", head.find("h1").get_text(), source="README.md")
    head.find("h1").extract()
    lead = head.find("p")
    page.question = " ".join(lead.get_text().split())
    lead.extract()
    picture = head.find("img")
    if picture:
        page.picture = str(picture.extract())
    page.sections.append(("main", page.title, page.question, ""))
    add_sections(head, page)
    page.sections.append(("course", "The course", "", ""))
    page.contents.append((2, "course", "The course"))
    add_sections(tail, page)
    cited = code(bibtex((root / "CITATION.cff").read_text(encoding="utf-8")), "bibtex")
    page.sections.append(("cite", "Cite it", "In BibTeX", ""))
    page.body = f'{head}<!--course-->{tail}<h2 id="cite">Cite it</h2>{cited}'
    return page, parts
