"""A cell that computes for long says so, in a real kernel; nothing of it is left behind."""

import json
import time
from types import SimpleNamespace

import pytest

from mechlab import waiting
from mechlab_course import pulse


class Screen:
    """What is shown, in place of an output: every text in turn."""

    def __init__(self):
        self.texts: list[str] = []

    def display(self, bundle, *, raw, display_id):
        self.update(bundle, raw=raw)
        return self

    def update(self, bundle, *, raw):
        self.texts.append(bundle["text/plain"])


@pytest.fixture
def screen(monkeypatch):
    made = Screen()
    monkeypatch.setattr(waiting, "kernel_shell", lambda: "a shell")
    monkeypatch.setattr("IPython.display.display", made.display)
    return made


def cell_of(seconds: float, id: str | None = None, during=lambda: None) -> None:
    beat = pulse.Pulse(delay=0.1, every=0.1)
    beat.started(SimpleNamespace(cell_id=id))
    during()
    time.sleep(seconds)
    beat.ended()


def test_a_quick_cell_says_nothing(screen):
    cell_of(0.0)
    assert screen.texts == []


def test_a_slow_cell_says_how_long_it_has_computed_and_leaves_nothing(screen, monkeypatch):
    monkeypatch.setattr(pulse, "known", lambda: {"abc": 20})
    cell_of(0.55, "abc")
    assert screen.texts[0] == "still computing: 0 s so far (about 20 s in all where it was measured)"
    assert len(screen.texts) >= 3 and screen.texts[-1] == ""
    cell_of(0.25, "another")
    assert "still computing: 0 s so far" in screen.texts and screen.texts[-1] == ""


def test_a_cell_that_runs_another_does_not_speak_for_ever(screen):
    beat = pulse.Pulse(delay=0.1, every=0.1)
    beat.started(SimpleNamespace(cell_id=None))
    outer = beat.thread
    beat.started(SimpleNamespace(cell_id=None))
    beat.ended()
    beat.ended()
    assert not outer.is_alive() and not beat.thread.is_alive()
    said = len(screen.texts)
    time.sleep(0.3)
    assert len(screen.texts) == said


def test_a_loop_that_is_counted_speaks_alone(screen):
    with waiting.waiting("patching", 2, delay=0) as done:
        cell_of(0.4, during=done)
    assert screen.texts[0].startswith("patching: 50% done") and set(screen.texts[1:]) == {""}


def test_what_is_known_is_kept_by_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "SECONDS", tmp_path / "seconds.json")
    pulse.known.cache_clear()
    assert pulse.known() == {}
    pulse.note("12_x", {"a": 7.6, "b": 2.0})
    pulse.note("11_y", {"c": 31.2})
    pulse.note("12_x", {"d": 4.0})
    pulse.known.cache_clear()
    assert pulse.known() == {"c": 31, "d": 4}
    (tmp_path / "seconds.json").write_text("{")
    pulse.known.cache_clear()
    assert pulse.known() == {}
    pulse.known.cache_clear()


def test_in_a_kernel():
    """Torch at work, an error, an interrupted cell: each speaks, and what comes after is as it was."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    said = []

    class Client(nbclient.NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] in ("display_data", "update_display_data"):
                said.append((cell_index, msg["content"]["data"]["text/plain"]))
            return super().process_message(msg, cell, cell_index)

    slow = "import time, torch\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: torch.randn(300, 300) @ x"
    setup = "import mechlab_course, torch\nx = torch.randn(300, 300)\np = get_ipython().mechlab_pulse\n"
    cells = [setup + "p.delay = p.every = 0.3", slow, "1 + 1", f"{slow}\nraise ValueError('mine')", "2 + 2"]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    Client(made, kernel_name="python3", allow_errors=True, timeout=60).execute()
    texts = {n: [text for at, text in said if at == n] for n in range(5)}
    assert len(texts[1]) >= 3 and texts[1][-1] == "" and texts[1][0].startswith("still computing")
    assert len(texts[3]) >= 3 and texts[3][-1] == ""
    assert not texts[2] and not texts[4]
    assert made.cells[3].outputs[-1]["ename"] == "ValueError"
    assert made.cells[4].outputs[0]["data"]["text/plain"] == "4"


def test_the_table_of_seconds_speaks_of_cells_that_exist():
    from mechlab_course.build import notebooks as build

    if not pulse.SECONDS.exists():
        pytest.fail("There is no mechlab_course/seconds.json: run `mechlab build --execute`.")
    for name, cells in json.loads(pulse.SECONDS.read_text()).items():
        made = {cell["id"] for cell in build.learner_notebook(build.sources()[name])["cells"]}
        assert {*cells} <= made, name
