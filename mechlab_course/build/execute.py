"""Execute a solution notebook and keep its outputs small.

Each figure also gets a PNG, because GitHub and paper show nothing else; the 1.3 MB script of the attention
views is not stored, since a saved notebook would not run it anyway; what it was called with is (a few KB),
for the web site. Of an explorer a picture and its words are left, and, for the site too, its copy as HTML.
"""

import base64
import json
import os
import re
import tempfile
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from mechlab_course.cells import foreign

CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
ATTENTION = "application/vnd.mechlab.attention+json"
EXPLORER = "application/vnd.mechlab.explorer"
WORDS = 800  # letters of what an explorer says
SCRIPT = re.compile(r"<script>.*?</script>", re.DOTALL)


class NotebookError(ValueError):
    """A file that cannot be run; the text says why."""


def read(path: Path) -> dict:
    """A notebook, fit to be run. Raises `NotebookError`."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise NotebookError("there is no such file") from None
    except OSError as error:
        raise NotebookError(f"it cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise NotebookError(f"not a notebook: {str(error) or 'nested too deeply'}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise NotebookError("not a notebook: it has no list of cells")
    if language := foreign(notebook):
        raise NotebookError(f"its kernel is for {language}. Choose a Python kernel and save it again")
    return notebook


def in_one_sentence(error: Exception) -> str:
    """What stopped a notebook, without a traceback."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    if isinstance(error, NotebookError):
        return str(error)
    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {error.evalue}"
    if isinstance(error, CellTimeoutError):
        return "a cell ran too long and was stopped. Is there a loop that does not end?"
    if isinstance(error, NoSuchKernel):
        return "there is no kernel named python3. Run `python -m ipykernel install --sys-prefix`."
    if isinstance(error, DeadKernelError) or (isinstance(error, RuntimeError) and "ernel" in str(error)):
        return "the kernel died, perhaps for want of memory. Close other notebooks, and run `mechlab doctor`."
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0] or 'no reason was given'}"


def run(notebook: dict, folder: Path, *, strict: bool, timeout: int = 300) -> dict:
    """Execute a notebook in `folder`; raises nbclient's CellExecutionError when a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    node = nbformat.reads(json.dumps(notebook), as_version=4)
    with (
        tempfile.TemporaryDirectory() as home,
        _environment(MECHLAB_HOME=home, MECHLAB_STRICT=str(int(strict))),
    ):
        client = NotebookClient(
            node,
            timeout=timeout,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],  # or it warns of TCP, which is no concern of a learner's
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    return json.loads(nbformat.writes(node))  # joined text becomes lists of lines again


def execute_solution(notebook: dict, folder: Path) -> tuple[dict, dict[str, float]]:
    """Run in `folder`, strictly and offline, and make the outputs fit for the repository.

    Also returned: the seconds of each cell of code, by its id.
    """
    with _environment(HF_HUB_OFFLINE="1"):
        done = run(notebook, folder, strict=True)
    seconds = {cell["id"]: _seconds(cell) for cell in done["cells"] if cell["cell_type"] == "code"}
    done["metadata"] = notebook["metadata"]
    with browser_page() as page:
        for cell, original in zip(done["cells"], notebook["cells"], strict=True):
            cell |= {"metadata": original["metadata"], "source": original["source"]}
            if cell["cell_type"] == "code":
                cell["outputs"] = [output for output in cell["outputs"] if not _is_wiped(output)]
                for output in cell["outputs"]:
                    _shrink(output, page)
                cell["outputs"] = _merged_streams(cell["outputs"])
    return done, seconds


def _seconds(cell: dict) -> float:
    """From the kernel's taking up a cell to its answer."""
    times = cell["metadata"]["execution"]
    at = {what: datetime.fromisoformat(when) for what, when in times.items()}
    return (at["shell.execute_reply"] - at["iopub.status.busy"]).total_seconds()


def _is_wiped(output: dict) -> bool:
    """Whether it is the emptied line of something that took long."""
    return list(output.get("data", {})) == ["text/plain"] and not "".join(output["data"]["text/plain"])


def _shrink(output: dict, page) -> None:
    data = output.get("data", {})
    output.get("metadata", {}).clear()
    if "text/html" in data:
        data.pop(WIDGET, None)  # the state of widgets is not stored; a copy of an explorer is
    if 'class="mechlab-explorer"' in "".join(data.get("text/html", "")):
        copy = "".join(data.pop("text/html"))
        data["image/png"] = png_of_explorer(page, copy)
        data[EXPLORER], data["text/plain"] = without_controls(copy)
    elif PLOTLY in data:
        data["image/png"] = png_of_plotly(page, data[PLOTLY])
    elif "CircuitsVis.render" in "".join(data.get("text/html", "")):
        view = "".join(data.pop("text/html"))
        data["image/png"], data[ATTENTION] = png_of_html(page, view), called_with(view)


def _merged_streams(outputs: list[dict]) -> list[dict]:
    """Join neighbouring pieces of one stream: how a kernel cuts its output into pieces is chance."""
    merged: list[dict] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output["output_type"] == "stream" and last.get("name") == output.get("name"):
            last["text"] = ("".join(last["text"]) + "".join(output["text"])).splitlines(True)
        else:
            merged.append(output)
    return merged


def chromium() -> str | None:
    """Where Chromium is on this machine, if it is."""
    return next((path for path in CHROMIUM if os.path.exists(path)), None)


@contextmanager
def browser_page(width: int = 900, height: int = 700):
    """A page of a headless Chromium with nothing to talk to."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise FileNotFoundError("Pictures need Chromium. On Debian: apt-get install chromium")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


def png_of_plotly(page, figure: dict) -> str:
    """A plotly figure as a base64 PNG, drawn by plotly's own script in Chromium."""
    from plotly.offline import get_plotlyjs

    page.set_content('<div id="figure"></div>')
    page.add_script_tag(content=get_plotlyjs())
    data = page.evaluate(
        "figure => Plotly.toImage(figure, {format: 'png', width: figure.layout.width || 720, "
        "height: figure.layout.height || 420})",
        json.loads(json.dumps(figure)),
    )
    return data.partition(",")[2]


def png_of_html(page, content: str) -> str:
    """An attention view as a base64 PNG; the script comes from the installed package."""
    from mechlab.pictures.patterns import _circuitsvis

    scripts = [s for s in SCRIPT.findall(content) if len(s) < 200_000]
    bare = SCRIPT.sub("", content) + "".join(scripts)
    page.set_content(f"<script>{_circuitsvis()};window.CircuitsVis=CircuitsVis;</script>{bare}")
    page.wait_for_timeout(1500)
    return base64.b64encode(page.locator("[id^=attention-]").screenshot()).decode()


def png_of_explorer(page, copy: str) -> str:
    """The copy that an explorer left as a base64 PNG."""
    look = "body { font: 14px system-ui, sans-serif; background: #fff; color: #222 } p { margin: 0 0 6px }"
    crop = ".mechlab-explorer { display: inline-block; padding: 8px } .mechlab-awake { display: none }"
    page.set_content(f"<!doctype html><style>{look} {crop}</style>{copy}")
    return base64.b64encode(page.locator(".mechlab-explorer").screenshot()).decode()


def without_controls(copy: str) -> tuple[str, str]:
    """The copy that an explorer left without what a running notebook needs, and what it says in words."""
    from bs4 import BeautifulSoup

    tree = BeautifulSoup(copy, "html.parser")
    for part in tree.select("style, .mechlab-awake, [onerror]"):
        part.decompose()
    parts = tree.select("p, h3, caption, tr, div:not(:has(div, p, table))")
    words = "; ".join(filter(None, (" ".join(part.get_text(" ").split()) for part in parts)))
    words = words if len(words) < WORDS else f"{words[:WORDS].rpartition(' ')[0]} …"
    return str(tree), f"An explorer, as it stood when the cell was run. {words}"


def called_with(view: str) -> str:
    """What an attention view asks CircuitsVis to draw, as JSON on one line, not a line a number."""
    call = "CircuitsVis.AttentionHeads, "
    content, _ = json.JSONDecoder().raw_decode(view, view.rindex(call) + len(call))
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def _environment(**values: str):
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
