"""What a cell put out, as HTML for a page that cannot compute: live figures, tables, verdicts, words."""

import ast
import base64
import html
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from bs4 import BeautifulSoup

from mechlab_course.build.execute import ATTENTION, EXPLORER, PLOTLY
from mechlab_course.folders import ROOT
from mechlab_course.site.prose import Anchors, Links, in_frame, link_papers, prose

SAID = re.compile(r'<div role="status" style="border-left:6px solid (#\w+)[^"]*">(.*)</div>\s*$', re.DOTALL)
VERDICTS = {"#009E73": "right", "#D55E00": "not-yet", "#777777": "open", "#0072B2": "note"}
IN_WORDS = "In words: "


@dataclass
class Shown:
    """What the outputs of a page add to it: figures in order, and the files that they need."""

    stem: str
    links: Links
    anchors: Anchors
    files: dict[str, bytes] = field(default_factory=dict)
    figures: int = 0


def text_of(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def rendered(cell: dict, shown: Shown) -> Iterator[tuple[str, str]]:
    """(kind, HTML) of each output of a cell; kinds: figure, text, said, table, explorer, prose."""
    twins = {text_of(o["data"].get("text/plain", "")) for o in cell["outputs"] if "data" in o}
    source = text_of(cell["source"])
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            text = "".join(
                line
                for line in text_of(output["text"]).splitlines(True)
                if line.strip().removeprefix(IN_WORDS) not in twins
            ).rstrip()
            if text:
                yield "text", f'<pre class="text" tabindex="0">{html.escape(text)}</pre>'
        elif "data" in output:
            made = _rich(output["data"], source, shown)
            if made:
                yield made


def _rich(data: dict, source: str, shown: Shown) -> tuple[str, str] | None:
    plain = text_of(data.get("text/plain", ""))
    if EXPLORER in data:
        return "explorer", _explorer(text_of(data[EXPLORER]), source, shown)
    if "image/png" in data:
        return "figure", _figure(data, plain, shown)
    if plain.startswith(IN_WORDS):
        return None  # it stands under its figure
    if "text/html" in data:
        content = text_of(data["text/html"])
        said = SAID.match(content)
        if said:
            return "said", f'<div class="said {VERDICTS.get(said[1], "note")}">{said[2]}</div>'
        return "table", _tables(content, source, shown.links)
    if "image/svg+xml" in data:
        return "figure", _drawing(text_of(data["image/svg+xml"]), plain)
    if "text/markdown" in data:
        made = prose(text_of(data["text/markdown"]), shown.links, "solutions", shown.anchors)
        return "prose", f'<div class="shown">{made}</div>'
    return ("text", f'<pre class="text" tabindex="0">{html.escape(plain)}</pre>') if plain else None


def _figure(data: dict, twin: str, shown: Shown) -> str:
    """A picture with its words. Where there is data, the page's script draws it, and it answers the mouse."""
    shown.figures += 1
    number, picture = shown.figures, base64.b64decode(text_of(data["image/png"]))
    width, height = struct.unpack(">II", picture[16:24])
    file = f"figures/{shown.stem[:2]}-{number}.png"
    shown.files[file] = picture
    figure, title, how, script = data.get(PLOTLY), "attention patterns", "still", ""
    if figure:
        title = re.sub(r"<[^>]+>", " ", figure["layout"].get("title", {}).get("text", "")) or "figure"
        how, script = "plot", _inline({"data": figure["data"], "layout": figure["layout"]})
    elif ATTENTION in data:
        how, script = "attention", _inline(json.loads(text_of(data[ATTENTION])))
    id = shown.anchors.new(f"figure-{number}")
    escaped = html.escape(twin, quote=True)
    return (
        f'<figure id="{id}"><div class="paper {how}" tabindex="0" role="group" '
        f'aria-label="Figure {number}: {html.escape(title, quote=True)}">'
        f'<img src="{file}" width="{width}" height="{height}" alt="{escaped}" decoding="async">{script}</div>'
        f"<figcaption><b>Figure {number}, in words.</b> {html.escape(twin)}</figcaption></figure>"
    )


def _inline(content: dict) -> str:
    """Data for the script of the page; nothing in it can end the element that holds it."""
    text = json.dumps(content, ensure_ascii=False).replace("</", "<\\/").replace("<!--", "<\\u0021--")
    return f'<script type="application/json">{text}</script>'


def _drawing(svg: str, twin: str) -> str:
    svg = svg[svg.find("<svg") :]
    return (
        f'<figure><div class="paper" tabindex="0" role="group" aria-label="Drawing">{svg}</div>'
        f"<figcaption>{html.escape(twin)}</figcaption></figure>"
    )


def _tables(content: str, source: str, links: Links) -> str:
    """HTML as pandas writes it: styles out, one row of heads, a caption that names what was asked."""
    tree = BeautifulSoup(content, "html.parser")
    for old in tree.find_all("style"):
        old.decompose()
    asked = source.strip().splitlines()[-1].strip() if source.strip() else "table"
    for table in tree.find_all("table"):
        for tag in [table, *table.find_all(True)]:
            for name in ("style", "border", "halign", "valign"):
                del tag[name]
        heads = table.select("thead > tr")
        if len(heads) == 2 and not heads[0].find("th").get_text(strip=True):
            names = [th.get_text(strip=True) for th in heads[1].find_all("th")]
            if not any(names[1:]):  # pandas gives the name of the index a row of its own
                heads[0].find("th").string = names[0]
                heads[1].decompose()
        if table.caption is None and len(asked) <= 90 and asked[:1] not in ")]}":
            caption = tree.new_tag("caption", attrs={"class": "hidden"})  # the code above shows it to the eye
            caption.string = asked
            table.insert(0, caption)
        in_frame(tree, table, f"Table: {asked[:90]}")
    link_papers(tree, links)
    return str(tree).strip()


def _explorer(content: str, source: str, shown: Shown) -> str:
    """In place of an explorer, which needs the model behind it: the copy that it left, without controls."""
    what = html.escape(_says(called(source)) or "An explorer with controls stands here.")
    what = re.sub(r"`([^`]+)`", r"<code>\1</code>", what)
    copy = BeautifulSoup(content, "html.parser")
    for table in copy.find_all("table"):
        in_frame(copy, table, "Table: what the explorer shows")
    return (
        f'<div class="explorer"><p><strong>Explorer.</strong> {what}</p><p>It recomputes on the live model. '
        f'<a href="notebooks/{shown.stem}.ipynb" download>Open the notebook</a> to use it.</p>{copy}</div>'
    )


def called(source: str) -> str:
    """The name of the function whose result a cell shows: `b` in `a.b(c)`."""
    try:
        last = ast.parse(source).body[-1]
    except (SyntaxError, IndexError):
        return ""
    function = last.value.func if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


@cache
def _says(name: str) -> str:
    """What the docstring of a function of the package says first, read without importing it."""
    for path in sorted((ROOT / "mechlab").rglob("*.py")) if name else ():
        text = path.read_text(encoding="utf-8")
        if f"def {name}(" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return ""
