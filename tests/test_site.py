"""The web site: what is on its pages, and how it behaves in a browser: for the eye, the keyboard, a screen reader, paper."""

import functools
import hashlib
import html
import http.server
import json
import re
import struct
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from mechlab import reference
from mechlab.pictures.tracing.flow import Example
from mechlab_course.build import links as lies
from mechlab_course.site import build, outputs, search
from mechlab_course.site.check import problems, size_of
from mechlab_course.site.prose import Anchors, Links, link_words, prose
from mechlab_course.site.turning import STORED

ROOT = Path(__file__).parents[1]
EXECUTED = sorted(
    path for path in (ROOT / "solutions").glob("*.ipynb") if (ROOT / "notebooks" / path.name).exists()
)
STEMS = [path.stem for path in EXECUTED]
browser = pytest.mark.browser
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HEATMAP = '"type": "heatmap"'
REPOSITORY = "https://github.com/Somebody/mechlab"


@pytest.fixture(scope="module")
def files():
    return build.site()


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("web") / "site"
    build.write(files, out)
    return out


@pytest.fixture(scope="module")
def published():
    """The site of a copy that somebody has published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lies, "address", lambda: REPOSITORY)
        return build.site()


def cells(stem: str, folder: str = "solutions") -> list[dict]:
    notebook = json.loads((ROOT / folder / f"{stem}.ipynb").read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"]]


def kind(cell: dict) -> str:
    return cell["metadata"].get("mechlab", {}).get("kind", "")


# What is on the pages ------------------------------------------------------------------------------------------------


def test_nothing_is_broken(files):
    assert problems(files) == []


def test_every_notebook_has_a_page_and_its_neighbours(files):
    home = BeautifulSoup(files["index.html"], "html.parser")
    named = [link["href"] for link in home.select(".row li a")]
    assert named == [f"{stem}.html" for stem in STEMS]
    for n, stem in enumerate(STEMS):
        page = BeautifulSoup(files[f"{stem}.html"], "html.parser")
        turns = {link["rel"][0]: link["href"] for link in page.select(".turn a")}
        expected = {"prev": STEMS[n - 1]} if n else {}
        expected |= {"next": STEMS[n + 1]} if n + 1 < len(STEMS) else {}
        assert turns == {rel: f"{name}.html" for rel, name in expected.items()}
        assert "minutes" in page.select_one(".needs").text and page.select_one(".question").text.endswith("?")
        assert (
            files[page.select_one(".ways a")["href"]] == (ROOT / "notebooks" / f"{stem}.ipynb").read_bytes()
        )


def links_of(page: bytes) -> list[str]:
    return [html.unescape(link) for link in re.findall(r'<a [^>]*?href="([^"]+)"', page.decode())]


def test_every_page_leads_to_where_it_comes_from(published):
    pages = [name for name in published if name.endswith(".html")]
    assert problems(published) == []
    for name in pages:
        page, found = name.removesuffix(".html"), links_of(published[name])
        elsewhere = {"index": "README.md", "tracing": "data/tracing/explorer.json"}
        source = elsewhere.get(page, f"docs/{page}.md")
        source = f"course/{page}/notebook.py" if page in STEMS else source
        assert REPOSITORY in found and f"{REPOSITORY}/blob/main/{source}" in found, name
        assert (ROOT / source).exists()
    for stem in STEMS:
        found = links_of(published[f"{stem}.html"])
        github = f"https://colab.research.google.com/github/Somebody/mechlab/blob/main/notebooks/{stem}.ipynb"
        assert {github, f"notebooks/{stem}.ipynb", f"{REPOSITORY}/blob/main/solutions/{stem}.ipynb"} <= set(
            found
        )


def test_without_an_address_nothing_leads_to_nobody(files):
    if lies.published():
        pytest.skip("this copy is published")
    for name in (name for name in files if name.endswith(".html")):
        text = files[name].decode()
        assert not [link for link in links_of(files[name]) if re.search("OWNER|colab|mechlab/blob/", link)], (
            name
        )
        assert "og:image" not in text and "og:url" not in text and "Made from " in text


def test_a_link_that_is_passed_on_shows_title_sentence_and_picture(files, published):
    picture = published["assets/social.png"]
    assert struct.unpack(">II", picture[16:24]) == (1200, 630) and len(picture) < 300_000
    said = []
    for name in (name for name in published if name.endswith(".html")):
        head = BeautifulSoup(published[name].partition(b"</head>")[0], "html.parser")
        told = {meta["property"]: meta["content"] for meta in head.select("meta[property]")}
        assert told["og:image"] == "https://somebody.github.io/mechlab/assets/social.png"
        end = "" if name == "index.html" else name
        assert told["og:url"] == f"https://somebody.github.io/mechlab/{end}" and told["og:title"]
        assert told["og:description"] == head.select_one("meta[name=description]")["content"]
        assert 20 < len(told["og:description"]) <= 230, name
        said.append(told["og:description"])
    assert len(set(said)) == len(said)


def test_the_first_page_says_how_to_start_and_how_to_cite(files, published):
    home = BeautifulSoup(files["index.html"], "html.parser")
    commands = "\n".join(pre.text for pre in home.select("pre"))
    for command in ('uv tool install --torch-backend auto "mechlab-course[lab]"', "mechlab lab", "make lab"):
        assert re.search(rf"^{re.escape(command)}\b|^{re.escape(command)}", commands, re.MULTILINE), command
    cited = home.select_one("#cite + pre").text
    assert cited.startswith("@software{mechlab,") and "version = {0.1.0}" in cited


def test_papers_are_links_in_prose_and_in_tables():
    links = Links(
        {},
        papers={"Wang et al. 2022": "https://a/w", "Gurnee 2024": "https://a/g", "Wang 2022": "https://a/v"},
    )
    text = "Wang et al.\n(2022) and Gurnee 2024, `Gurnee 2024`, Gurnee 20245, McGurnee 2024. [Gurnee 2024](https://b/)"
    tree = prose(text, links, "docs", Anchors())
    found = [(link["href"], " ".join(link.text.split())) for link in tree.find_all("a")]
    assert found == [
        ("https://a/w", "Wang et al. (2022)"),
        ("https://a/g", "Gurnee 2024"),
        ("https://b/", "Gurnee 2024"),
    ]
    table = "<table><tr><td>x</td><td>Wang et al. 2022, section 2</td></tr></table>"
    made = outputs._tables(table, "table", links)
    assert '<a href="https://a/w">Wang et al. 2022</a>, section 2' in made


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem[0] != "0"])
def test_each_technique_leads_to_its_papers(files, stem):
    page = BeautifulSoup(files[f"{stem}.html"], "html.parser")
    known = {*reference.addresses().values()}
    assert known & {link["href"] for link in page.select("main td a[href]")}  # beside the figures


@pytest.mark.parametrize("stem", STEMS)
def test_answers_are_folded_and_everything_is_there(files, stem):
    page = BeautifulSoup(files[f"{stem}.html"], "html.parser")
    solved = cells(stem)
    assert not page.select("details[open]:not(.contents details)")
    stubs = [cell["source"].strip() for cell in cells(stem, "notebooks") if kind(cell) == "exercise"]
    answers = [cell["source"].strip() for cell in solved if kind(cell) == "exercise"]
    assert [pre.text.strip() for pre in page.select(".exercise > pre")] == stubs
    assert [pre.text.strip() for pre in page.select(".exercise > details.solution > pre")] == answers
    folded = [cell for cell in solved if kind(cell) in ("quiz", "predict")]
    assert len(page.select("details.answer")) == len(folded)
    verdicts = [said.text for said in page.select(".check .said")]
    assert len(verdicts) == len(answers) and all(": correct." in verdict for verdict in verdicts)
    for cell in folded:
        assert cell["source"] not in "".join(
            pre.text for pre in page.select("pre") if not pre.find_parent("details")
        )
    hints = sum(cell["source"].count("<details>") for cell in solved if cell["cell_type"] == "markdown")
    assert len(page.select("details:not([class]) > summary")) - len(page.select(".contents")) == hints
    shown = [
        o["data"] for cell in solved for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    explorers = [data for data in shown if outputs.EXPLORER in data]  # a picture for others; here their copy
    assert len(page.select(".explorer")) == len(explorers)
    shown = [data for data in shown if outputs.EXPLORER not in data]
    twins = [html.unescape("".join(data["text/plain"])) for data in shown]
    assert [img["alt"] for img in page.select("figure img")] == twins
    assert all(twin in caption.text for twin, caption in zip(twins, page.select("figcaption"), strict=True))
    assert "In words:" not in "".join(pre.text for pre in page.select("pre.text"))
    tables = [
        table
        for table in page.select("table")
        if table.parent.name != "div" or "scroll" not in table.parent["class"]
    ]
    assert not tables and not page.select("table style, style[scoped]") and not page.select("th:not([scope])")
    assert "Previous:" not in page.main.text


def test_the_build_needs_no_torch_and_gives_the_same_bytes(files):
    code = (
        "import sys, hashlib\nfrom mechlab_course.site.build import site\nfiles = site()\n"
        "assert 'torch' not in sys.modules\n"
        "print(hashlib.sha256(b''.join(n.encode() + c for n, c in sorted(files.items()))).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.strip()
        == hashlib.sha256(
            b"".join(name.encode() + content for name, content in sorted(files.items()))
        ).hexdigest()
    )


def test_the_check_notices_what_is_wrong(files):
    page = files["glossary.html"].decode()
    broken = page.replace(
        "</main>",
        '<h5 id="main">x</h5><a href="no.html">x</a><a href="index.html#no">x</a><img src="https://a.b/c.png"></main>',
    )
    found = "\n".join(problems(files | {"glossary.html": broken.encode()}))
    for part in (
        "no.html leads nowhere",
        "there is no such place",
        "the id main is used twice",
        "alternative text",
    ):
        assert part in found
    assert "would be loaded from elsewhere" in found and "a level of headings is skipped" in found
    heavy = files | {"glossary.html": files["glossary.html"] + b" " * 3_000_000}
    assert any("at most 3,000,000 are wanted" in problem for problem in problems(heavy))
    assert max(size_of(files, name) for name in files if name.endswith(".html")) < 3_000_000


def test_the_command_says_how_large_the_site_is_and_fails_where_something_is_broken(
    files, monkeypatch, tmp_path
):
    from typer.testing import CliRunner

    from mechlab_course.cli import app

    monkeypatch.setattr(build, "site", lambda: files)
    done = CliRunner().invoke(app, ["site", "--out", str(tmp_path), "--check"])
    assert done.exit_code == 0 and f"{len(list(tmp_path.glob('*.html')))} pages" in done.stdout
    monkeypatch.setattr("mechlab_course.site.check.problems", lambda files: ["x.html: something."])
    done = CliRunner().invoke(app, ["site", "--out", str(tmp_path), "--check"])
    assert done.exit_code == 1 and "x.html: something." in done.stdout


def test_what_is_no_longer_wanted_goes(files, tmp_path):
    build.write(files, tmp_path)
    (tmp_path / "99_old.html").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    build.write(files, tmp_path)
    assert not (tmp_path / "99_old.html").exists() and (tmp_path / "mine.txt").exists()


LINKS = Links(
    {"notebooks/12_x.ipynb": "12_x.html", "docs/glossary.md": "glossary.html"}, {}, "https://host/me/mechlab"
)


def test_links_lead_to_pages_to_the_repository_or_nowhere():
    assert LINKS.target("12_x.ipynb", "notebooks") == "12_x.html"
    assert LINKS.target("../docs/glossary.md#a", "solutions") == "glossary.html#a"
    assert LINKS.target("../data/README.md", "docs") == "https://host/me/mechlab/blob/main/data/README.md"
    assert Links({}).target("data/README.md", "") is None
    assert LINKS.target("https://github.com/OWNER/mechlab", "") is None
    assert LINKS.target("#here", "docs") == "#here"


def test_words_and_notebooks_are_linked_once_and_only_where_they_are_known():
    links = Links(LINKS.pages, terms=[("logit lens", "a meaning", "11", "word-logit-lens")])
    text = "Notebooks 12 and 99: the logit lens. `logit lens`, Logit lenses. 12 apples."
    tree = prose(text, links, "notebooks", Anchors())
    link_words(tree, links, "21", set())
    assert [(a["href"], a.text) for a in tree.find_all("a")] == [
        ("12_x.html", "Notebooks 12"),
        ("glossary.html#word-logit-lens", "logit lens"),
    ]
    assert tree.get_text().strip() == text.replace("`", "")


def shown_as(data: dict, source: str = "f(x)") -> list[tuple[str, str]]:
    shown = outputs.Shown("12_x", LINKS, Anchors())
    output = {"output_type": "display_data", "data": data}
    return list(outputs.rendered({"source": source, "outputs": [output]}, shown))


def test_a_figure_cannot_end_its_script_and_an_explorer_shows_the_copy_that_it_left():
    figure = {"data": [{"x": ["</script><!--"]}], "layout": {"title": {"text": "a <b>"}}}
    ((what, made),) = shown_as({"image/png": PIXEL, outputs.PLOTLY: figure, "text/plain": 'two "words" <'})
    tree = BeautifulSoup(made, "html.parser")
    assert what == "figure" and json.loads(tree.script.string)["data"] == figure["data"]
    assert tree.img["alt"] == 'two "words" <' and (tree.img["width"], tree.img["height"]) == ("1", "1")
    twin = {"text/html": "<details>two</details>", "text/plain": "In words: two"}
    assert shown_as(twin) == []  # it stands under the figure
    copy = '<div class="mechlab-explorer"><table><tr><td>5.58</td></tr></table></div>'
    stored = {outputs.EXPLORER: copy, "image/png": PIXEL, "text/plain": "x"}
    ((what, made),) = shown_as(stored, "x = 1\nml.widgets.patch_explorer(x)")
    assert what == "explorer" and "Open the notebook</a> to use it" in made and "head" in made
    assert "5.58" in made and "<img" not in made


def test_an_attention_view_keeps_what_it_was_called_with():
    import torch

    import mechlab as ml
    from mechlab_course.build.execute import called_with

    view = ml.attention_view(torch.ones(1, 2, 2), ["</script>", "b"], ["1.0"])
    for with_script in (True, False):
        stored = called_with(view.to_html(with_script))
        assert json.loads(stored) == view.props and "\n" not in stored
    ((_, made),) = shown_as({"image/png": PIXEL, outputs.ATTENTION: stored, "text/plain": view.text})
    assert json.loads(BeautifulSoup(made, "html.parser").script.string) == view.props


def test_tables_get_one_row_of_heads_a_caption_and_no_styles():
    content = (
        '<div><style scoped>x{}</style><table border="1"><thead><tr style="a"><th></th><th>b</th></tr><tr><th>name</th>'
        "<th></th></tr></thead><tbody><tr><th>r</th><td>1</td></tr></tbody></table></div>"
    )
    ((what, made),) = shown_as({"text/html": content, "text/plain": ""}, "x = 1\nx.top(6)")
    table = BeautifulSoup(made, "html.parser")
    assert what == "table" and table.caption.text == "x.top(6)" and "style" not in made
    assert [(th.text, th["scope"]) for th in table.find_all("th")] == [
        ("name", "col"),
        ("b", "col"),
        ("r", "row"),
    ]


def test_the_index_finds_names_by_their_parts(files):
    assert search.words("ml.head_scores of 23.3, S1+1") == {
        "ml.head_scores",
        "ml",
        "head",
        "scores",
        "23.3",
        "23",
        "s1+1",
        "s1",
        "head_scores",
    }
    assert len(files["assets/search-index.js"]) < 600_000
    made = json.loads(
        files["assets/search-index.js"].decode().removeprefix("window.mechlabIndex=").rstrip(";\n")
    )
    for word in ("induction", "head_scores", "rome", "perplexity"):
        assert word in made["words"]


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(folder):
    handler = functools.partial(Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def chrome():
    from playwright.sync_api import sync_playwright

    from mechlab_course.build import execute

    path = execute.chromium()
    if path is None:
        pytest.skip("Chromium is not installed (on Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=execute.FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(chrome):
    """A page that asks nobody but the site, and whose scripts do not fail."""
    page = chrome.new_page(viewport={"width": 1366, "height": 800})
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    yield page
    page.close()
    assert [url for url in asked if not re.match(r"http://127\.0\.0\.1:|file://|data:", url)] == []
    assert failed == []


def first_with(files: dict, what: str) -> str:
    return next(f"{stem}.html" for stem in STEMS if what in files[f"{stem}.html"].decode())


@browser
def test_axe_finds_nothing_serious_in_light_or_dark(page, address, files):
    axe = (Path(find_spec("axe_playwright_python").origin).parent / "axe.min.js").read_text(encoding="utf-8")
    audit = """async ({part, ...options}) => (await axe.run(part || document, {resultTypes: ["violations"], ...options})).violations
      .filter(v => ["serious", "critical"].includes(v.impact))
      .map(v => v.id + ": " + v.nodes.slice(0, 3).map(n => n.html.slice(0, 200)).join(" | "))"""
    # Of the pieces of highlighted code, thousands, one of each colour on each page will do.
    fewer = """() => { const seen = new Set();
      for (const piece of document.querySelectorAll("pre.code span"))
        if (seen.has(piece.className)) piece.replaceWith(piece.textContent); else seen.add(piece.className);
      document.querySelectorAll("details").forEach(part => part.open = true); }"""
    # Contrast takes longest, and depends on nothing but tags, classes and styles: one text of a kind will do.
    thin = """() => { const seen = new Set();
      const kind = each => each.matches("body") ? "" : kind(each.parentElement) + `>${each.tagName}.${each.className}.${each.getAttribute("style")}`;
      for (const each of document.querySelectorAll("main :not(script)")) {
        const texts = [...each.childNodes].filter(node => node.nodeType == 3 && node.data.trim());
        if (texts.length && seen.has(kind(each))) texts.forEach(text => text.remove()); else seen.add(kind(each)); }
      document.querySelectorAll("main :empty:not(summary)").forEach(each => each.remove()); }"""
    contrast = {"runOnly": ["color-contrast"]}
    found = []
    for name in sorted(name for name in files if name.endswith(".html")):
        page.goto(f"{address}/{name}")
        page.evaluate(fewer)
        page.evaluate(axe)
        found += [
            f"{name}: {each}"
            for each in page.evaluate(audit, {"rules": {"color-contrast": {"enabled": False}}})
        ]
        page.evaluate(thin)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found += [f"{name}, {scheme}: {each}" for each in page.evaluate(audit, contrast)]
    views = [name for name in files if b'<div class="paper attention"' in files[name]]
    for name in views:  # with a view drawn by CircuitsVis, too
        page.goto(f"{address}/{name}")
        page.locator(".attention").first.scroll_into_view_if_needed()
        page.wait_for_selector(".attention.drawn canvas, .attention.drawn svg")
        page.evaluate(axe)
        found += [f"{name}, drawn: {each}" for each in page.evaluate(audit, {"part": ".attention"})]
    page.emulate_media(color_scheme="light")
    page.goto(f"{address}/index.html")
    page.keyboard.press("/")
    page.keyboard.type("induction")
    page.wait_for_selector("dialog li")
    page.evaluate(axe)
    found += [f"search: {each}" for each in page.evaluate(audit, {})]
    assert found == []


@browser
@pytest.mark.parametrize("way", ["server", "folder"])
def test_a_figure_is_drawn_and_answers_to_the_mouse(page, address, folder, files, way):
    start, name = address if way == "server" else folder.as_uri(), first_with(files, HEATMAP)
    page.goto(f"{start}/{name}")
    number = [
        HEATMAP in each.text for each in BeautifulSoup(files[name], "html.parser").select(".plot > script")
    ].index(True)
    paper = page.locator(".plot").nth(number)
    paper.scroll_into_view_if_needed()
    paper.locator(".live .hm image, .live .imagelayer").first.wait_for(state="attached", timeout=20_000)
    page.wait_for_function(
        "n => document.querySelectorAll('.plot')[n].classList.contains('drawn')", arg=number
    )
    assert paper.locator("img").bounding_box()["width"] <= 1  # there for who cannot see
    box = paper.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
    paper.locator(".hoverlayer text").first.wait_for()
    assert re.search(r": -?\d", paper.locator(".hoverlayer").text_content())


@browser
def test_an_attention_view_is_drawn_and_its_heads_can_be_chosen(page, folder, files):
    name = first_with(files, '<div class="paper attention"')
    page.goto(f"{folder.as_uri()}/{name}")
    view = page.locator(".attention").first
    view.scroll_into_view_if_needed()
    page.wait_for_selector(".attention.drawn canvas")
    heads = json.loads(BeautifulSoup(files[name], "html.parser").select_one(".attention > script").text)[
        "attentionHeadNames"
    ]
    live = view.locator(".live")
    assert all(head in live.inner_text() for head in heads)
    assert f"{heads[0]} Zoomed" in live.inner_text()
    live.get_by_text(heads[-1], exact=True).first.hover()
    page.wait_for_function(
        "text => document.querySelector('.attention .live').innerText.includes(text)",
        arg=f"{heads[-1]} Zoomed",
    )


@browser
@pytest.mark.parametrize("way", ["server", "folder"])
def test_the_search_is_used_by_the_keyboard(page, address, folder, way):
    start = address if way == "server" else folder.as_uri()
    page.goto(f"{start}/index.html")
    page.keyboard.press("/")
    page.keyboard.type("induction he")
    page.wait_for_selector("dialog li")
    first = page.locator("dialog li").first
    assert first.inner_text().startswith("induction head") and "Glossary" in first.inner_text()
    assert (
        page.locator("dialog [role=status]")
        .inner_text()
        .startswith(f"{len(page.locator('dialog li').all())} section")
    )
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('href')").startswith("glossary.html#")
    page.keyboard.press("Enter")
    page.wait_for_selector("tr:target")
    assert "induction head" in page.locator("tr:target").inner_text()
    page.keyboard.press("/")
    page.keyboard.type("nosuchword")
    page.wait_for_function("document.querySelector('dialog [role=status]').textContent == '0 sections'")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


@browser
def test_neurons_are_turned_by_the_keyboard_among_stored_steps(page, folder):
    """From a file, without a server: what is shown at each step is what is stored, and says so in words."""
    page.set_viewport_size({"width": 1366, "height": 768})
    page.goto(f"{folder.as_uri()}/index.html")
    page.get_by_role("link", name="Turn a few neurons").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 1366
    stored = [Example.from_dict(each) for each in json.loads((ROOT / STORED).read_text(encoding="utf-8"))]
    for example, box in zip(stored, page.locator(".turning").all(), strict=True):
        first, second = box.locator("input[type=range]").all()
        rows = lambda box=box: box.locator(".likely tr").all_inner_texts()
        seen = lambda rows=rows: [(*row.split()[:2], float(row.split()[2])) for row in rows()]
        near = lambda p: pytest.approx(p, abs=0.0051)  # a browser rounds halves up
        shown = lambda step, near=near: [(*repr(token).split(), near(p)) for token, p in step.likely]
        gone = lambda box=box: box.locator(".late code").all_inner_texts()
        needle = lambda box=box: box.locator(".mechlab-needle").first.bounding_box()["x"]
        assert seen() == shown(example.steps[(0.0, 0.0), None])
        start = needle()
        first.focus()
        for _ in range(6):
            page.keyboard.press("ArrowRight")
        step = example.steps[(1.5, 0.0), None]
        assert seen() == shown(step) and gone() == [f"{share:.2f}" for share in step.gone]
        assert needle() > start + 20
        said = box.locator("p[role=status]").text_content()
        assert f"{step.likely[0][0]!r} {step.likely[0][1]:.2f}" in said and "at +1.50" in said
        second.focus()
        page.keyboard.press("End")
        box.locator("select").select_option("1")
        step = example.steps[(1.5, 2.0), 0]
        assert seen() == shown(step) and gone()[0] == "0.00"
        width = box.locator(".likely tr div").first.evaluate("bar => bar.style.width")
        assert float(width.rstrip("%")) == pytest.approx(100 * step.likely[0][1])
        box.locator(".back").focus()
        page.keyboard.press("Enter")
        assert seen() == shown(example.steps[(0.0, 0.0), None])


@browser
def test_a_part_of_the_drawing_is_a_button_that_tells_what_is_inside(page, folder):
    page.emulate_media(reduced_motion="reduce")  # nothing scrolls while it is clicked
    page.goto(f"{folder.as_uri()}/tracing.html")
    box = page.locator(".turning").first
    for name, told in (("MLP 23 at", "L23N1508"), ("23.4 at", "It looks at")):
        button = box.locator(f".canvas button[aria-label^='{name}']")
        button.focus()
        page.keyboard.press("Enter")
        assert box.locator(".inside h3").inner_text().startswith(name)
        assert told in box.locator(".inside").inner_text() and button.get_attribute("aria-pressed") == "true"
    assert box.locator(".canvas button[aria-pressed=true]").count() == 1
    box.locator("svg rect[stroke]").first.click(force=True)  # it lies under a button of its own
    assert box.locator(".canvas button[aria-pressed=true]").get_attribute("aria-label").startswith("MLP 0 ")


@browser
def test_a_solution_unfolds_by_the_keyboard_and_paper_unfolds_all(page, address, files):
    name = first_with(files, '<details class="solution"')
    page.goto(f"{address}/{name}")
    answer = page.locator("details.solution").first
    assert not answer.locator("pre").first.is_visible()
    answer.locator("summary").focus()
    page.keyboard.press("Enter")
    assert answer.locator("pre").first.is_visible()
    closed = page.locator("main details:not([open])").count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert closed and page.locator("main details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("main details:not([open])").count() == closed
    page.locator(".plot").first.scroll_into_view_if_needed()
    page.wait_for_selector(".drawn")
    page.emulate_media(media="print")  # the stored pictures in place of the live ones, and no navigation
    assert (
        page.locator(".drawn img").first.bounding_box()["width"] > 300
        and not page.locator(".live").first.is_visible()
    )
    assert not page.locator(".top").is_visible() and not page.locator(".turn").is_visible()


@browser
def test_every_page_fits_a_telephone_and_reads_without_scripts(chrome, address, files):
    context = chrome.new_context(viewport={"width": 360, "height": 740}, java_script_enabled=False)
    page = context.new_page()
    for name in sorted(name for name in files if name.endswith(".html")):
        page.goto(f"{address}/{name}", wait_until="domcontentloaded")
        wide = page.locator("html").evaluate("root => root.scrollWidth")
        assert wide <= 360, f"{name} is {wide} pixels wide"
    page.goto(f"{address}/{first_with(files, '<figure')}")
    assert page.locator("figure img").first.is_visible()
    context.close()


@browser
def test_on_a_telephone_no_figure_lies_outside_its_frame(chrome, address, files):
    """Drawn where it fits, else the picture, which does."""
    page = chrome.new_page(viewport={"width": 390, "height": 844})
    kinds = [HEATMAP, '<div class="paper attention"', '"xaxis3"', '"bar"']
    for name in dict.fromkeys(first_with(files, kind) for kind in kinds):
        page.goto(f"{address}/{name}")
        page.evaluate("document.querySelectorAll('main details').forEach(part => part.open = true)")
        for paper in page.locator(".plot, .attention").all():
            paper.scroll_into_view_if_needed()
            page.wait_for_timeout(100)
        page.wait_for_function("!document.querySelector('.paper:has(.live):not(.drawn)')")
        assert page.locator(".drawn").count() > 0, name
        wide = page.evaluate("""[...document.querySelectorAll('.paper')].filter(paper => {
          const [frame, shown] = [paper, paper.querySelector('.live svg') || paper.querySelector('img')].map(
            each => each.getBoundingClientRect());
          return paper.scrollWidth > paper.clientWidth + 1 || shown.right > frame.right || shown.width < 250;
        }).map(paper => paper.ariaLabel)""")
        assert wide == [], name
        cut = page.evaluate("""[...document.querySelectorAll('.live svg text')].filter(text => {
          const [frame, box] = [text.closest('.paper'), text].map(each => each.getBoundingClientRect());
          return box.width && (box.right > frame.right + 1 || box.left < frame.left - 1);
        }).map(text => text.textContent)""")
        assert cut == [], name
    page.close()
