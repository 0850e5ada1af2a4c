"""Markdown and code to HTML: headings with anchors, tables that scroll, links to pages of the site."""

import html
import posixpath
import re
from dataclasses import dataclass, field
from functools import cache, cached_property

from bs4 import BeautifulSoup, NavigableString, Tag
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from mechlab_course.build.links import owned

NOTEBOOKS = re.compile(r"\b[Nn]otebooks? \d\d(?:(?:, | and | or | to )\d\d)*\b")
NUMBER = re.compile(r"(?:\b[Nn]otebooks? )?\b\d\d\b")
PLAIN = ("a", "code", "pre", "h1", "h2", "h3", "h4", "summary", "script", "math", "th", "b", "strong")


@dataclass
class Links:
    """Where things are: what a link of the repository becomes on the site."""

    pages: dict[str, str]  # path in the repository -> file of the site
    files: dict[str, str] = field(default_factory=dict)  # the same for pictures
    repository: str = ""  # the address of the repository, "" while it has none
    terms: list[tuple[str, str, str, str]] = field(default_factory=list)  # word, meaning, notebook, anchor
    papers: dict[str, str] = field(default_factory=dict)  # "Wang et al. 2022" -> address

    def target(self, link: str, folder: str) -> str | None:
        """The address on the site of a link in `folder` of the repository; None if there is none."""
        if link.startswith(("http:", "https:", "mailto:")):
            return owned(link) or None  # a copy that nobody has published
        path, _, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path)) if path else ""
        known = self.pages.get(path) or self.files.get(path)
        if known or not path:
            return (known or "") + (f"#{anchor}" if anchor else "")
        return self.stored(path) or None

    def stored(self, path: str) -> str:
        """Where a file of the repository is seen in it; "" while nobody has published it."""
        return f"{self.repository}/blob/main/{path}" if self.repository else ""

    @cached_property
    def cited(self) -> re.Pattern:
        """What cites a paper: "Wang et al. 2022" or "Wang et al. (2022)", the longest first."""
        forms = []
        for citation in sorted(self.papers, key=len, reverse=True):
            *name, last = (re.escape(word) for word in citation.split())
            alone = sum(each.startswith(citation) for each in self.papers) == 1
            last = rf"(?:{last}|\({last}\))" if alone and re.fullmatch(r"\d{4}", last) else last
            forms.append(r"\s+".join([*name, last]))
        return re.compile(rf"\b(?:{'|'.join(forms)})(?!\w)")

    def notebook(self, number: str) -> str | None:
        """The page of a notebook by its number."""
        return next((file for file in self.pages.values() if file.startswith(f"{number}_")), None)


@dataclass
class Anchors:
    """The ids of one page, each used once."""

    used: set[str] = field(default_factory=set)

    def new(self, text: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
        name, n = base, 1
        while name in self.used:
            n += 1
            name = f"{base}-{n}"
        self.used.add(name)
        return name


def code(source: str, language: str = "python") -> str:
    """Highlighted code, which can be reached and scrolled by the keyboard."""
    try:
        lexer = get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    body = highlight(source.rstrip("\n") + "\n", lexer, HtmlFormatter(nowrap=True))
    return f'<pre class="code" tabindex="0"><code>{body}</code></pre>'


def _math(source: str, options: dict) -> str:
    block = options["display_mode"]
    made = convert(source.strip(), display="block" if block else "inline")
    made = made.replace("<math ", f'<math alttext="{html.escape(source.strip(), quote=True)}" ', 1)
    frame = '<span class="scroll formula" tabindex="0" role="group" aria-label="Formula">'
    return f"{frame}{made}</span>" if block else made


@cache
def _markdown() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    reader.use(dollarmath_plugin, renderer=_math, double_inline=True)
    reader.add_render_rule(
        "fence", lambda self, tokens, n, options, env: code(tokens[n].content, tokens[n].info)
    )
    return reader


def prose(text: str, links: Links, folder: str, anchors: Anchors) -> BeautifulSoup:
    """Markdown as a tree of HTML: the caller may still change it, then take `str(...)`."""
    tree = BeautifulSoup(_markdown().render(text), "html.parser")
    for heading in tree.find_all(re.compile("^h[1-6]$")):
        heading["id"] = anchors.new(heading.get_text())
    for table in tree.find_all("table"):
        in_frame(tree, table, "Table")
    for link in tree.find_all("a", href=True):
        target = links.target(link["href"], folder)
        if target is None:
            link.unwrap()
        else:
            link["href"] = target
    link_papers(tree, links)
    for picture in tree.find_all("img"):
        picture["src"] = links.target(picture["src"], folder) or picture["src"]
    return tree


def in_frame(tree: BeautifulSoup, table: Tag, label: str) -> None:
    """Name the heads of a table and put it into a frame of its own, which scrolls when the table is wide."""
    for head in table.find_all("th"):
        if not head.get("scope"):
            head["scope"] = "col" if head.find_parent("thead") else "row"
        if head.find_parent("thead") and not head.get_text(strip=True):
            head.name = "td"
            del head["scope"]
    frame = tree.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "group"})
    frame["aria-label"] = label
    table.wrap(frame)


def link_papers(tree: BeautifulSoup, links: Links) -> None:
    """Link each paper that is cited to where it can be read."""
    if not links.papers:
        return
    where = lambda found: links.papers[" ".join(re.sub("[()]", "", found).split())]
    for node in list(tree.find_all(string=links.cited)):
        if not node.find_parent(("a", "code", "pre", "summary", "h1", "h2", "h3", "h4", "script")):
            _replace(node, links.cited, lambda found: _anchor(where(found), found), links.cited)


def link_words(tree: BeautifulSoup, links: Links, number: str, linked: set[str]) -> None:
    """Link "notebook 23" to its page, and words of earlier notebooks to the glossary, each once on a page."""
    for node in list(tree.find_all(string=NOTEBOOKS)):
        if not node.find_parent(PLAIN):
            _replace(node, NUMBER, lambda found: _anchor(links.notebook(found[-2:]), found), NOTEBOOKS)
    for word, meaning, home, anchor in links.terms:
        if home >= number or anchor in linked:
            continue
        whole = re.compile(rf"(?<![\w-]){re.escape(word)}(?:s|es)?(?![\w+-])", 0 if word.isupper() else re.I)
        for node in tree.find_all(string=whole):
            if node.find_parent(PLAIN) is None:
                linked.add(anchor)
                text = str(node)
                found = whole.search(text)
                link = _anchor(f"glossary.html#{anchor}", found[0], title=meaning, **{"class": "term"})
                node.replace_with(*_parts(text[: found.start()], link, text[found.end() :]))
                break


def _anchor(target: str | None, text: str, **attributes: str) -> Tag | None:
    if target is None:
        return None
    link = BeautifulSoup("", "html.parser").new_tag("a", attrs={"href": target, **attributes})
    link.string = text
    return link


def _replace(node: NavigableString, piece: re.Pattern, make, within: re.Pattern) -> None:
    """Replace each `piece` within a match of `within` by what `make` says, if it says anything."""
    text, parts, end = str(node), [], 0
    for outer in within.finditer(text):
        for found in piece.finditer(text, outer.start(), outer.end()):
            link = make(found[0])
            if link is not None:
                parts += [text[end : found.start()], link]
                end = found.end()
    node.replace_with(*_parts(*parts, text[end:]))


def _parts(*parts: str | Tag) -> list[NavigableString | Tag]:
    return [NavigableString(part) if isinstance(part, str) else part for part in parts if part != ""]
