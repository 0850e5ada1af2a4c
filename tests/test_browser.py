"""A real JupyterLab in a headless Chromium, as a learner meets it, with the network off.

`mechlab lab` is started on a fresh working copy; notebook 00 is opened and run from the menu; a plotly figure,
an attention view and a widget must be drawn; a slider is moved; an exercise is answered wrongly, then rightly.
Of the other notebooks the first picture and the explorers are looked at; all their cells are run elsewhere, with nbval.
Screenshots land in test-artifacts/. Two workers may share the tests (`-n 2 --dist loadgroup`, see conftest), each with a JupyterLab; those about the
first notebook belong together, in their order.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from mechlab_course.build import execute
from mechlab_course.build.execute import FLAGS
from mechlab_course.build.folding import TITLE
from tests.cells import needed

pytestmark = [pytest.mark.browser, pytest.mark.model]
ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "test-artifacts"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
PORT = int(os.environ.get("MECHLAB_TEST_PORT", 8931)) + int(WORKER[2:] or 0)
LOG = SHOTS / f"lab{WORKER}.log"
HERE = f"http://localhost:{PORT}"
WRONG = "return logits[-1, rival] - logits[-1, answer]"
RIGHT = "return logits[-1, answer] - logits[-1, rival]"


@pytest.fixture(scope="module")
def chromium():
    path = execute.chromium()
    if path is None:
        assert not os.environ.get("CI"), "CI must install Chromium"
        pytest.skip("Chromium is not installed (on Debian: apt-get install chromium)")
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a working copy, every Python process under the network guard."""
    folder = tmp_path_factory.mktemp("lab")
    SHOTS.mkdir(exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "tests" / "netguard"),
        "MECHLAB_NETGUARD_LOG": str(folder / "network"),
        "MECHLAB_HOME": str(folder / "home"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "MECHLAB_STRICT": "0",
    }
    command = [
        sys.executable,
        "-m",
        "mechlab_course.cli",
        "lab",
        "--no-browser",
        "--work",
        str(folder / "work"),
    ]
    command += [f"--port={PORT}", "--ServerApp.port_retries=0", "--IdentityProvider.token=test"]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", PORT)), f"port {PORT} is taken; is another JupyterLab running?"
    started = time.monotonic()
    with LOG.open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{HERE}/api?token=test", timeout=1)
                    break
                except OSError:
                    assert process.poll() is None, LOG.read_text()
                    assert time.monotonic() - started < 60, "JupyterLab did not start within a minute"
                    time.sleep(0.2)
            yield folder, time.monotonic() - started
        finally:
            process.terminate()
            process.wait(20)
        asked = folder / "network"
        assert not asked.exists(), asked.read_text()


@pytest.fixture(scope="module")
def page(chromium, lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        printed = re.findall(rf"{HERE}/\S+", LOG.read_text())  # the address a person would open
        page.goto(printed[0].replace("token=...", "token=test"))
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        yield page
        outside = [url for url in page.asked if not url.startswith((HERE, "data:", "blob:"))]
        assert outside == [], "a page asked for the network"
        browser.close()


def menu(page, *path: str) -> None:
    for name in path:
        page.get_by_role("menuitem", name=name, exact=True).first.click()


def wait_until_idle(page, seconds: float = 120) -> None:
    """Wait until no cell is queued or running."""
    busy = "[...document.querySelectorAll('.jp-InputPrompt')].some(e => e.textContent.includes('[*]'))"
    page.wait_for_timeout(1500)
    deadline = time.monotonic() + seconds
    while page.evaluate(busy):
        assert time.monotonic() < deadline, "the notebook did not finish"
        page.wait_for_timeout(300)
    page.wait_for_timeout(500)


def cell(page, text: str):
    """The code cell whose source holds `text`, of the notebook in front."""
    shown = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")
    return shown.filter(has=page.locator(".jp-InputArea", has_text=text)).first


def replace_in_editor(page, text: str, new: str) -> None:
    """Select a line of an exercise and type another in its place, as a person would."""
    line = page.locator(".cm-line", has_text=text).first
    line.scroll_into_view_if_needed()
    line.click()
    page.keyboard.press("End")
    page.keyboard.press("Shift+Home")
    page.keyboard.type(new)
    page.keyboard.press("Shift+Enter")
    wait_until_idle(page)


def run_cell(page, text: str):
    found = cell(page, text)
    found.locator(".cm-line").first.click()
    page.keyboard.press("Shift+Enter")
    wait_until_idle(page)
    return found


def test_lab_opens_on_notebook_00_without_a_popup(page, lab):
    _, seconds = lab
    assert seconds < 30
    assert page.locator(".jp-Notebook h1").first.inner_text().startswith("00 Start here")
    page.wait_for_timeout(2000)
    assert page.locator(".Toastify__toast").count() == 0
    wide = "() => [...document.querySelectorAll('.cm-scroller')].filter(e => e.scrollWidth > e.clientWidth).length"
    page.set_viewport_size(SMALL)
    page.wait_for_timeout(500)
    assert page.evaluate(wide) == 0  # no line of code runs out of its cell
    page.set_viewport_size({"width": 1400, "height": 1000})
    page.screenshot(path=SHOTS / "1-opened.png")


def test_run_all_draws_figures_attention_and_widgets(page):
    menu(page, "Run", "Run All Cells")
    wait_until_idle(page)
    figure = page.locator(".js-plotly-plot").first
    figure.scroll_into_view_if_needed()
    assert figure.locator("svg .bars path").count() == 3
    assert "logit difference" in figure.inner_text()
    page.screenshot(path=SHOTS / "2-figure.png")
    view = page.locator("[id^=attention-]").first
    view.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    assert view.locator("canvas, svg, img").count() > 0
    assert "23.8" in view.inner_text()
    other = view.get_by_role("button", name="show head 23.8")  # without a mouse
    other.focus()
    page.keyboard.press("Enter")
    until(page, lambda: "23.8 Zoomed" in view.inner_text())
    page.screenshot(path=SHOTS / "3-attention.png")
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert "Traceback" not in page.locator(".jp-Notebook").inner_text()


def test_a_slider_recomputes_on_the_model(page):
    explorer = cell(page, "patch_explorer")
    explorer.scroll_into_view_if_needed()
    output = explorer.locator(".jp-OutputArea")
    assert "first sentence, head 23.3 replaced" in output.inner_text()
    before = re.search(r"head 23\.3 replaced\s+([+-][\d.]+)", output.inner_text())[1]
    handle = explorer.locator(".noUi-handle").nth(1)
    handle.focus()
    page.keyboard.press("ArrowRight")  # sliders work from the keyboard
    page.wait_for_timeout(2500)
    after = re.search(r"head 23\.4 replaced\s+([+-][\d.]+)", output.inner_text())[1]
    assert float(before) < 0.5 < float(after)
    for name in ("layer", "head"):  # said to a screen reader
        assert explorer.get_by_role("slider", name=name, exact=True).count() == 1
    box = explorer.locator(".mechlab-lasting")
    assert box.evaluate("each => each.scrollWidth <= each.clientWidth")
    page.screenshot(path=SHOTS / "4-slider.png")


def test_a_skipped_wrong_and_right_answer(page, lab):
    check = cell(page, "check(logit_difference)")
    check.scroll_into_view_if_needed()
    assert "Exercise 00.1: not attempted." in check.inner_text()
    replace_in_editor(page, "raise NotImplementedError  # your code here", WRONG)
    assert (
        "Exercise 00.1: not yet. The sign is the other way round"
        in run_cell(page, "check(logit_difference)").inner_text()
    )
    page.screenshot(path=SHOTS / "5-not-yet.png")
    replace_in_editor(page, WRONG, RIGHT)
    assert "Exercise 00.1: correct." in run_cell(page, "check(logit_difference)").inner_text()
    page.screenshot(path=SHOTS / "6-correct.png")
    progress = run_cell(page, "progress_table")
    progress.scroll_into_view_if_needed()
    assert "1 of 3" in progress.inner_text()
    assert '"00.1", "status": "correct"' in (lab[0] / "home" / "progress.jsonl").read_text()


def test_a_hint_unfolds(page):
    hint = page.locator("details", has_text="Hint 2: the method").first
    hint.locator("summary").click()
    assert hint.get_attribute("open") is not None
    assert "Take the last row" in hint.inner_text()


def test_what_a_prediction_must_not_see_is_folded(page):
    bars = page.locator(".jp-InputPlaceholder")
    assert bars.count() == 4
    assert {bar.strip() for bar in bars.all_inner_texts()} == {TITLE}
    assert page.locator(".cm-line", has_text="claim(").count() == 0
    bars.first.locator(".jp-Placeholder-content").click()
    assert page.locator(".cm-line", has_text="claim(").count() > 0


def fits(page, text: str) -> None:
    """Controls and what they change are seen together on a laptop of 1366 by 768."""
    before = page.viewport_size
    page.set_viewport_size({"width": 1366, "height": 768})
    page.wait_for_timeout(500)
    found = (
        cell(page, text)
        .locator(".jp-OutputArea-child")
        .filter(has=page.locator(".jupyter-widgets, [id^=attention-]"))
    )
    pane = page.locator(".jp-WindowedPanel-outer:visible").first.bounding_box()["height"]
    assert found.first.bounding_box()["height"] <= pane <= 650, text
    page.set_viewport_size(before)
    page.wait_for_timeout(500)


def slide(page, call: str, key: str = "ArrowRight") -> tuple[str, str]:
    """What the explorer of a cell says before and after one step of its first slider, by the keyboard."""
    found = cell(page, call)
    found.scroll_into_view_if_needed()
    output = found.locator(".jp-OutputArea")
    before = output.inner_text()
    handle = output.locator(".noUi-handle, .ui-slider-handle").first
    handle.focus()
    page.keyboard.press(key)
    page.wait_for_timeout(2500)
    page.screenshot(path=SHOTS / f"8-{call.strip('(')}.png")
    return before, output.inner_text()


def moves_the_temperature(page):
    before, after = slide(page, "temperature_explorer(")
    assert "all other tokens" in before and before != after


def moves_the_lens(page):
    before, after = slide(page, "lens_explorer(")
    assert "on entering layer 24" in before and "on entering layer 25" in after
    assert "' Paris'" in after


def moves_the_pattern(page):
    before, after = slide(page, "pattern_explorer(")
    assert "head 16.0" in before and "head 17.0" in after


def moves_the_toy(page):
    before, after = slide(page, "toy_explorer(")
    assert "features are kept" in before and before != after


def until(page, happened, seconds: float = 30) -> None:
    """Wait for something that a click brings about, however busy the machine is."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "nothing happened after the click"
        page.wait_for_timeout(200)


def browses_features(page):
    found = cell(page, "feature_browser(")
    found.scroll_into_view_if_needed()
    output = found.locator(".jp-OutputArea")
    assert "Feature 1209, active on" in output.inner_text()
    output.locator("button", has_text="One at random").click()
    until(page, lambda: "Feature 1209, active on" not in output.inner_text())
    word = output.locator("input[type=text]").last
    word.fill("food")
    word.press("Enter")
    until(page, lambda: "Feature 885, active on" in output.inner_text())
    found_by_word = output.locator("select").inner_text().replace("\xa0", " ")
    assert found_by_word.startswith("885:") and "on average" in found_by_word
    output.locator("select").select_option(index=1)
    until(page, lambda: "Feature 885, active on" not in output.inner_text())
    page.screenshot(path=SHOTS / "8-feature_browser.png")


def touches_the_circuit(page):
    """Choose a head by the keyboard, remove it; remove two others together; put all back."""
    box = cell(page, "circuit_explorer(").locator(".mechlab-circuit").first
    box.scroll_into_view_if_needed()
    text = lambda: box.inner_text()
    value = lambda name: float(re.search(rf"{name}\s+([+−-]?[\d.]+)", text())[1].replace("−", "-"))
    head = box.locator("button", has_text="23.3").first
    head.focus()
    page.keyboard.press("Enter")
    until(page, lambda: "23.3:" in box.locator("h3").first.inner_text())
    until(page, lambda: "running" not in text() and "without 23.3" in text())
    intact = value("all in place")
    assert value("without 23.3") < intact - 1
    box.get_by_text("Where it looks").click()
    until(page, lambda: "Attention of 23.3" in text())
    fits(page, "circuit_explorer(")
    box.get_by_text("Without it").click()
    for name in ("23.0", "23.1"):
        head = box.locator("button", has_text=name).first
        head.click()
        until(page, lambda name=name: f"{name}:" in box.locator("h3").first.inner_text())
        box.locator("input[type=checkbox]").first.click()
        until(page, lambda head=head: "removed" in (head.get_attribute("title") or ""))
    until(page, lambda: "running" not in text() and "without these 2" in text())
    assert abs(value("without these 2") - intact) < 1
    page.screenshot(path=SHOTS / "8-circuit_explorer.png")
    box.locator("button", has_text="Put all back").focus()
    page.keyboard.press("Enter")
    until(page, lambda: "Nothing is removed." in text())
    assert page.evaluate("document.activeElement.innerText") == "Put all back"  # the keyboard stays there


def turns_neurons(page):
    """By the keyboard: a slider, which changes the answer; a part of the drawing, which is told; all back."""
    box = cell(page, "tracing_explorer(").locator(".mechlab-circuit").first
    box.scroll_into_view_if_needed()
    said = lambda: box.locator(".mechlab-said").inner_text()
    start = said()
    handle = box.locator(".noUi-handle").first
    assert "neurons)" in (handle.get_attribute("aria-label") or "")
    handle.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    until(page, lambda: "at +1.00" in said())
    part = box.locator(".mechlab-head", has_text="MLP").first
    part.focus()
    page.keyboard.press("Enter")
    until(page, lambda: "The neurons that carry most" in box.inner_text())
    page.screenshot(path=SHOTS / "8-tracing_explorer.png")
    box.locator("button", has_text="All back to 0").focus()
    page.keyboard.press("Enter")
    until(page, lambda: said() == start)
    assert page.evaluate("document.activeElement.innerText") == "All back to 0"


EXPLORERS = {
    "02": ("temperature_explorer(", moves_the_temperature),
    "21": ("lens_explorer(", moves_the_lens),
    "23": ("pattern_explorer(", moves_the_pattern),
    "25": ("toy_explorer(", moves_the_toy),
    "26": ("feature_browser(", browses_features),
    "42": ("circuit_explorer(", touches_the_circuit),
    "57": ("tracing_explorer(", turns_neurons),
}
OTHERS = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))][1:]


def opened(page, name: str):
    """A notebook in front, with its kernel ready."""
    page.goto(f"{HERE}/lab/tree/notebooks/{name}.ipynb?token=test")
    page.wait_for_selector(f".jp-Notebook h1:has-text('{name[:2]} ')", timeout=60_000)
    page.wait_for_timeout(2500)
    return page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook")


def drew(page, notebook, name: str, figures: int) -> None:
    text = notebook.inner_text()
    assert "Traceback" not in text and "AssertionError" not in text
    drawn = notebook.locator(".js-plotly-plot")
    assert drawn.count() >= figures
    if not figures:
        return
    drawn.first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.screenshot(path=SHOTS / f"7-{name}.png")


def builds_upon(name: str, call: str) -> list[int]:
    """Numbers of the cells that the cell with this call builds upon, the setup first, itself last."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(c["source"]) if c["cell_type"] == "code" else None for c in cells]
    target = max(n for n, source in enumerate(code) if source and call in source)
    setup = next(n for n, source in enumerate(code) if source)
    return sorted({setup, *needed(code, target)})


def run_cells(page, notebook, numbers: list[int]) -> None:
    for number in numbers:
        found = notebook.locator(".jp-Cell").nth(number)
        found.scroll_into_view_if_needed()
        found.locator(".cm-line").first.click()
        page.keyboard.press("Shift+Enter")
        wait_until_idle(page, 120)


@pytest.mark.parametrize("name", [name for name in OTHERS if name[:2] in EXPLORERS])
def test_an_explorer_answers_in_the_browser(page, name):
    call, explore = EXPLORERS[name[:2]]
    notebook = opened(page, name)
    run_cells(page, notebook, builds_upon(name, call))
    drew(page, notebook, name, figures=0)
    explore(page)
    fits(page, call)


@pytest.mark.parametrize("name", [name for name in OTHERS if name[:2] not in EXPLORERS])
def test_the_other_notebooks_draw_their_first_picture(page, name):
    """Their cells are run by `tests.nbval_plugin`; here the first ones, until there is a figure to look at."""
    notebook = opened(page, name)
    notebook.locator(".jp-CodeCell .cm-line").first.click()
    for _ in range(12):
        page.keyboard.press("Shift+Enter")
        wait_until_idle(page, 120)
        if notebook.locator(".js-plotly-plot").count():
            break
    drew(page, notebook, name, figures=1)


LASTING = {
    "load": "import time\nimport mechlab as ml\nfrom mechlab.waiting import waiting\nmodel = ml.load()\n"
    "pair = ml.prompt_pair(model, 'When John and Mary met, John gave a drink to', "
    "'When John and Mary met, Mary gave a drink to', ' Mary', ' John')",
    "slider": "ml.widgets.patch_explorer(model, pair.clean, pair.corrupted, pair.metric, layer=23, head=3)",
    "bar": "with waiting('counting', 4, delay=0) as done:\n    for _ in range(4):\n        time.sleep(0.6)\n"
    "        done()\nprint('counted')",
    "figure": "ml.Scores([1.0, -2.0], ('head',), 'effect (logits)', {'head': ['a', 'b']}).plot()",
    "attention": "_, cache = model.run_with_cache(pair.clean)\nml.attention_view(cache['pattern', 23][0], "
    "model.to_str_tokens(pair.clean[0]), [str(n) for n in range(9)])",
    "circuit": "prompts = ml.ioi_prompts(model, 8)\nruns = ml.CircuitRuns(model, prompts, prompts.corrupted('abc'))\n"
    "ml.circuit_explorer(runs, ml.ioi.found_circuit(), start=(23, 3))",
    "tracing": "frame = 'In {} people speak'\nthere, here = (frame.format(city) for city in ('Tokyo', 'Munich'))\n"
    "words = ml.logit_difference(model.to_single_token(' Japanese'), model.to_single_token(' German'))\n"
    "contrast = ml.Contrast(model, there, here, words)\n"
    "group = ml.supernode(contrast.totals(), 2, 10)\n"
    "knob = ml.Knob.between(model, 'Germany to Japan', group, here, there)\n"
    "ml.tracing_explorer(contrast, frame.format('Berlin'), [knob], knob)",
}
SMALL = {"width": 1366, "height": 768}  # of which a notebook gets 645 pixels in height


def closed(page, file: Path) -> None:
    """Save, leave the page, shut all kernels down: the next day."""
    code = lambda: [
        c for c in json.loads(file.read_text())["cells"] if "".join(c["source"]) and "outputs" in c
    ]
    page.keyboard.press("Escape")
    deadline = time.monotonic() + 60
    while not all(each["execution_count"] for each in code()):
        assert time.monotonic() < deadline, "the notebook was not saved"
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
    page.once("dialog", lambda dialog: dialog.accept())  # "Leave site?": drawing changes a notebook too
    page.goto("about:blank")
    for session in asked("sessions"):
        asked(f"sessions/{session['id']}", "DELETE")


def theme(name: str) -> None:
    address = f"{HERE}/lab/api/settings/@jupyterlab/apputils-extension:themes?token=test"
    content = json.dumps({"raw": json.dumps({"theme": f"JupyterLab {name}"})}).encode()
    head = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(address, content, head, method="PUT"))


def contrast(page, found) -> tuple[float, float]:
    """Luminance of the paper of an element, and the contrast of the strongest ink on it."""
    import io

    import numpy as np
    from PIL import Image

    found.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    pixels = np.asarray(Image.open(io.BytesIO(found.screenshot())).convert("RGB")).reshape(-1, 3) / 255
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    light = linear @ [0.2126, 0.7152, 0.0722]
    paper = float(np.median(light))
    return paper, max((light.max() + 0.05) / (paper + 0.05), (paper + 0.05) / (light.min() + 0.05))


@pytest.fixture(scope="module")
def lasting(page, lab):
    """A notebook with one of everything that moves, run, saved and left."""
    cells = [{"cell_type": "markdown", "id": "top", "metadata": {}, "source": "# 99 What lasts"}]
    cells += [
        {
            "cell_type": "code",
            "id": id,
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for id, source in LASTING.items()
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    file = lab[0] / "work" / "notebooks" / "99_lasting.ipynb"
    file.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    page.set_viewport_size(SMALL)
    notebook = opened(page, file.stem)
    page.get_by_text("Python 3 (ipykernel) | Idle").first.wait_for(timeout=60_000)
    run_cells(page, notebook, list(range(1, len(cells))))
    page.screenshot(path=SHOTS / "9-lasting.png")
    yield file
    page.set_viewport_size({"width": 1400, "height": 1000})


def test_what_moves_fits_a_small_screen_and_is_no_error_on_the_next_day(page, lasting):
    for text in ("patch_explorer", "attention_view", "circuit_explorer", "tracing_explorer"):
        fits(page, text)
    turns_neurons(page)
    closed(page, lasting)
    notebook = opened(page, lasting.stem)
    said = ""
    for n in range(len(LASTING) + 1):
        notebook.locator(".jp-Cell").nth(n).scroll_into_view_if_needed()
        page.wait_for_timeout(700)
        said += notebook.locator(".jp-Cell").nth(n).inner_text()
    page.screenshot(path=SHOTS / "9-reopened.png")
    for dead in ("model not found", "Loading widget", "Error displaying", "% done"):
        assert dead not in said
    assert "head 23.3 replaced" in said and "23.3: subject suppressor" in said and "counted" in said
    assert said.count("Run the cell again to move the controls.") == 3
    outputs = {c["id"]: c.get("outputs", []) for c in json.loads(lasting.read_text())["cells"]}
    assert "% done" not in json.dumps(outputs["bar"])
    live = "() => [...document.querySelectorAll('.mechlab-awake')].filter(e => e.offsetHeight).length"
    run_cells(page, notebook, [1, 2])
    assert page.evaluate(live) == 2  # it is gone where the controls move again, the first


def test_pictures_follow_the_theme(page, lasting):
    try:
        for name in ("Dark", "Light"):
            theme(name)
            notebook = opened(page, lasting.stem)
            for part in (".jp-RenderedPlotly", "[id^=attention-]", ".mechlab-circuit"):
                notebook.locator(".jp-Cell").last.scroll_into_view_if_needed()
                paper, ink = contrast(page, notebook.locator(part).first)
                assert (paper < 0.05 if name == "Dark" else paper > 0.8) and ink >= 4.5, (part, paper, ink)
                page.screenshot(path=SHOTS / f"9-{name}-{re.sub(r'[^a-zA-Z]', '', part)}.png")
    finally:
        theme("Light")


COUNTED = "return model.to_tokens(str(number), prepend_bos=False).shape[1]"


def mechlab(folder: Path, *command: str) -> str:
    """What a command says to the learner of this JupyterLab, in another folder than the one it was started in."""
    env = os.environ | {"MECHLAB_HOME": str(folder / "home")}
    (folder / "elsewhere").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mechlab_course.cli", *command]
    done = subprocess.run(
        command, env=env, cwd=folder / "elsewhere", capture_output=True, encoding="utf-8", input=""
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_a_restart_is_explained_and_an_answer_that_was_never_saved_comes_back(page, lab):
    notebook = opened(page, "01_tokens_and_embeddings")
    menu(page, "Kernel")
    page.locator(".lm-Menu-itemLabel", has_text="Restart Kernel").first.click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.wait_for_timeout(3000)
    check = run_cell(page, "check(count_tokens")
    page.screenshot(path=SHOTS / "9-restarted.png")
    said = " ".join(check.inner_text().split())
    assert "NameError" in said and "is made by a cell further up that has not run since the kernel" in said
    assert "Run > Run All Above Selected Cell. Your answers and your progress stay." in said
    check.locator(".cm-line").first.click()
    menu(page, "Run", "Run All Above Selected Cell")
    wait_until_idle(page)
    cell(page, "def count_tokens").locator(".cm-line", has_text="raise NotImplementedError").click()
    page.keyboard.press("End")
    page.keyboard.press("Shift+Home")
    page.keyboard.type(COUNTED)
    page.keyboard.press("Shift+Enter")
    assert "Exercise 01.1: correct." in run_cell(page, "check(count_tokens").inner_text()
    loaded = notebook.locator(".jp-CodeCell").first.locator(".jp-OutputArea-output").all_inner_texts()
    assert [text.strip()[:19] for text in loaded if text.strip()] == ["smollm2: 30 layers "]
    said = mechlab(lab[0], "answers", "01", "--restore")
    assert (
        "left alone, it is open in JupyterLab" in said and f"{lab[0] / 'work'}. It is the one of last" in said
    )
    page.once("dialog", lambda dialog: dialog.accept())  # "Leave site?"
    page.goto("about:blank")
    for session in asked("sessions"):
        asked(f"sessions/{session['id']}", "DELETE")
    saved = lab[0] / "work" / "notebooks" / "01_tokens_and_embeddings.ipynb"
    shutil.copyfile(ROOT / "notebooks" / saved.name, saved)  # as if nothing had been saved by itself either
    assert "01.1: solved on 20" in mechlab(lab[0], "progress")
    assert COUNTED in mechlab(lab[0], "answers", "01.1")
    assert "01.1: put back into 01_tokens" in mechlab(lab[0], "answers", "01", "--restore")
    assert COUNTED in saved.read_text(encoding="utf-8")
    notebook = opened(page, "01_tokens_and_embeddings")
    assert COUNTED in cell(page, "count_tokens").inner_text()


def asked(what: str, method: str = "GET"):
    request = urllib.request.Request(f"{HERE}/api/{what}?token=test", method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read() or "null")


def test_the_working_copy_is_never_overwritten(lab):
    mine = lab[0] / "work" / "notebooks" / "00_start_here.ipynb"
    shutil.copyfile(ROOT / "solutions" / "00_start_here.ipynb", mine)
    before = mine.read_bytes()
    from mechlab_course.build import workspace

    workspace.refresh(ROOT / "notebooks", lab[0] / "work")
    assert mine.read_bytes() == before
