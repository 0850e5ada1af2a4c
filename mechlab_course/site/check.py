"""What can be checked of the site without a browser: links, ids, alternative texts, sizes, nobody asked."""

import posixpath
import re
from html.parser import HTMLParser
from urllib.parse import unquote

LARGEST, SEARCH = 3_000_000, 600_000  # bytes of a page with its pictures, of the search index


class _Reader(HTMLParser):
    """Ids, links, things that a page loads, and pictures without words."""

    def __init__(self):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.levels: list[int] = []
        self.silent = 0
        self.language = ""

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("img", "script", "link", "iframe", "source", "video", "audio"):
            self.loads += [given[name] for name in ("src", "href") if given.get(name)]
        if tag == "img" and not (given.get("alt") or "").strip():
            self.silent += 1
        if tag == "html":
            self.language = given.get("lang", "")
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))


def problems(files: dict[str, bytes]) -> list[str]:
    """Everything that is wrong with the site, one sentence each."""
    pages = {name: _Reader() for name in files if name.endswith(".html")}
    for name, reader in pages.items():
        reader.feed(files[name].decode())
    found = []
    for name, page in pages.items():
        found += [f"{name}: the id {id} is used twice." for id in set(page.ids) if page.ids.count(id) > 1]
        found += [f"{name}: {page.silent} pictures have no alternative text."] if page.silent else []
        found += [] if page.language == "en" else [f"{name}: the language is not stated."]
        found += [] if page.levels.count(1) == 1 else [f"{name}: one heading of level 1 is needed."]
        if any(b > a + 1 for a, b in zip(page.levels, page.levels[1:], strict=False)):
            found.append(f"{name}: a level of headings is skipped.")
        for link in [*page.links, *page.loads]:
            problem = _leads_nowhere(link, name, files, pages, loaded=link in page.loads)
            if problem:
                found.append(f"{name}: {problem}")
        if size_of(files, name) >= LARGEST:
            found.append(f"{name}: {size_of(files, name):,} bytes; at most {LARGEST:,} are wanted.")
    if len(files["assets/search-index.js"]) >= SEARCH:
        found.append(f"The search index has {len(files['assets/search-index.js']):,} bytes.")
    outside = re.findall(rb"@import|url\(\s*['\"]?https?:", files["assets/site.css"])
    return found + ([f"site.css asks the network: {outside[0].decode()}"] if outside else [])


def _leads_nowhere(link: str, page: str, files: dict, pages: dict[str, _Reader], loaded: bool) -> str:
    if re.match(r"[a-z]+:", link):
        return f"{link} would be loaded from elsewhere." if loaded and not link.startswith("data:") else ""
    path, _, anchor = link.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(path))) if path else page
    if target not in files:
        return f"{link} leads nowhere."
    if anchor and unquote(anchor) not in (pages[target].ids if target in pages else ()):
        return f"{link}: there is no such place on that page."
    return ""


def size_of(files: dict[str, bytes], name: str) -> int:
    """Bytes of a page with the pictures that it shows, without the scripts that all pages share."""
    shown = set(re.findall(r'<img [^>]*?src="([^"]+)"', files[name].decode()))
    return len(files[name]) + sum(len(files[picture]) for picture in shown if picture in files)
