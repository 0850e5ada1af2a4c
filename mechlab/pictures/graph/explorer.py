"""A circuit to touch: click a head and see what it does; take some away and see what is left."""

import html
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from mechlab.circuits.circuits import Circuit, Head
from mechlab.circuits.knockouts import CircuitRuns
from mechlab.pictures import drawing
from mechlab.pictures.boxes import lasting
from mechlab.pictures.graph.plan import Plan, lay_out
from mechlab.pictures.graph.svg import HIGH, LEFT, circuit_svg, foot, wide
from mechlab.pictures.graph.trials import Trials
from mechlab.pictures.graph.words import described, head_told, removal_told, together_told
from mechlab.pictures.twins import PAPER, STYLE
from mechlab.results import named, token_labels

if TYPE_CHECKING:
    import ipywidgets

# White paper, turned dark with a dark theme (twins.py); JupyterLab's own colours are variables.
LOOK = """<style>
.mechlab-circuit { --jp-content-font-color1: #222; --jp-ui-font-color0: #222; --jp-ui-font-color1: #222;
  --jp-ui-font-color2: #444; --jp-widgets-color: #222;
  --jp-widgets-label-color: #222; --jp-widgets-input-color: #222; --jp-widgets-input-background-color: #fff;
  --jp-widgets-input-border-color: #888; --jp-layout-color0: #fff; --jp-layout-color1: #fff;
  --jp-layout-color2: #e8e8e8; --jp-border-color1: #bdbdbd;
  --jp-rendermime-table-row-background: #fff; --jp-rendermime-table-row-hover-background: #f4f4f4;
  color-scheme: light; background: #fff; color: #222; padding: 8px; }
.mechlab-circuit p, .mechlab-circuit caption { margin: 0 0 4px; line-height: 1.3; }
.mechlab-circuit td { white-space: nowrap; }
.mechlab-circuit .mechlab-pattern { overflow-x: auto; }
.mechlab-circuit .mechlab-pattern td,
.mechlab-circuit .mechlab-pattern code { font-size: 11px; line-height: 1.3; }
.mechlab-circuit .mechlab-head { border-radius: 8px; overflow: visible; }
.mechlab-circuit input[type="checkbox"] { vertical-align: middle; margin-top: 0; }
.mechlab-circuit button:focus-visible { outline: 3px solid #0072B2; }
.mechlab-circuit .mechlab-idle { opacity: .6; }
.mechlab-circuit .widget-tab > .widget-tab-contents { padding: 6px 8px; }
</style>"""
BUTTON = {"button_color": "transparent", "text_color": "#222222", "font_weight": "bold", "font_size": "12px"}


def circuit_explorer(
    knockouts: CircuitRuns, circuit: Circuit, *, start: Head | None = None
) -> "ipywidgets.Box":
    """The picture of a circuit with heads to click: who reads it, where it looks, what goes without it.

    knockouts: the model on some prompts, ready to run without some heads; positions stand in the order of the
               prompts'
    start:     the head to begin with

    A head is removed at the positions where its role acts, in each prompt its own, and stays removed until it
    is put back. Raises `CircuitError` for a circuit that does not fit the model or the positions.
    """
    plan = lay_out(circuit, list(knockouts.prompts.positions))
    if start is not None:
        circuit.role(start)  # refuses a head that is not in the circuit
    explorer = _Explorer(Trials(knockouts, circuit), plan)
    if start is not None:
        explorer.choose(tuple(start))
    return explorer.box


class _Explorer:
    """The widgets: which head is chosen, which are removed, and what is shown of it."""

    def __init__(self, trials: Trials, plan: Plan):
        import ipywidgets as w

        self.trials, self.circuit, self.plan = trials, trials.circuit, plan
        self.head: Head | None = None
        self.removed: set[Head] = set()
        self.busy = threading.RLock()  # JupyterLab answers clicks and changes in two threads
        self.told, self.removal, self.together, self.status, self.pattern = (w.HTML() for _ in range(5))
        self.toggle = w.Checkbox(indent=False, layout=w.Layout(width="auto", margin="2px 12px 2px 0"))
        self.role = w.Button(layout=w.Layout(width="auto"))
        self.back = w.Button(description="Put all back", layout=w.Layout(width="auto"))
        self.prompt = w.Dropdown(
            options=self._prompts(),
            description="prompt",
            layout=w.Layout(width="auto"),
            style={"description_width": "initial"},
        )
        self.box = self._arranged()
        self.toggle.observe(self._toggled, names="value")
        self.role.on_click(self._careful(lambda _: self._remove(self.removed | self._fellows())))
        self.back.on_click(self._careful(lambda _: self._remove(set())))
        self.prompt.observe(self._careful(lambda _: self._show_pattern()), names="value")
        self._mark()

    def _prompts(self) -> list[tuple[str, int]]:
        """The text of each prompt, and its number."""
        model, begin = self.trials.model, self.trials.model.tokenizer.bos_token or ""
        prompts = map(self.trials.prompt, range(len(self.trials.prompts)))
        return [(str(model.to_string(tokens)).removeprefix(begin), n) for n, tokens in enumerate(prompts)]

    def _arranged(self) -> "ipywidgets.Box":
        """The drawing with its buttons, and beside it what is told."""
        import ipywidgets as w

        wrap = w.Layout(flex_flow="row wrap")
        buttons = w.HBox([self.toggle, self.role, self.back], layout=wrap)
        pages = [w.VBox([buttons, self.removal, self.together]), w.VBox([self.prompt, self.pattern])]
        self.controls = w.Tab(pages, titles=["Without it", "Where it looks"])
        parts = [self.told, self.status, self.controls]
        size = {"flex": "1 1 330px", "min_width": "330px", "max_width": "620px", "margin": "0 0 0 8px"}
        size |= {"max_height": "600px", "overflow": "hidden auto"}  # as high as the drawing
        style = w.HTML(STYLE + LOOK, layout=w.Layout(display="none"))
        box = w.Box([style, self._canvas(), w.VBox(parts, layout=w.Layout(**size))], layout=wrap)
        for part, name in ((box, "mechlab-circuit"), (box, PAPER), (self.pattern, "mechlab-pattern")):
            part.add_class(name)
        return lasting(box)

    def choose(self, head: Head) -> None:
        """Show what there is to know about a head: first what is known already, then what needs a run."""
        self.head = head
        self.removal.value = ""
        self._mark()
        self._show_pattern()
        self.removal.value = removal_told(self.trials, head)

    def _remove(self, heads: set[Head]) -> None:
        self.removed = set(heads)
        self.together.value = ""
        self._mark()
        self.together.value = together_told(self.trials, self.removed)

    def _toggled(self, change: dict) -> None:
        with self.busy:
            if change["new"] != (self.head in self.removed):  # a person did it, not `_mark`
                self._careful(self._remove)(self.removed ^ {self.head})

    def _fellows(self) -> set[Head]:
        return set() if self.head is None else {*self.circuit.roles[self.circuit.role(self.head)]}

    def _mark(self) -> None:
        """Mark what is chosen and what is removed, by shape and in words."""
        self.drawn.value = circuit_svg(self.plan, self.circuit, self.head, self.removed)
        for head, button in self.buttons.items():
            states = [
                word for word, on in (("chosen", head == self.head), ("removed", head in self.removed)) if on
            ]
            button.tooltip = "; ".join([described(self.circuit, head), *states])
        self.controls.layout.display = "" if self.head else "none"
        self.told.value = head_told(self.trials, self.head)
        if self.head:
            fellows = self._fellows()
            self.toggle.description = f"{named([self.head])} removed"
            self.toggle.value = self.head in self.removed
            self.role.description = f"Remove all {len(fellows)} of its role"
            self.role.layout.display = "" if len(fellows) > 1 else "none"
            for button, idle in ((self.role, fellows <= self.removed), (self.back, not self.removed)):
                # paler, not disabled: a button that disables itself throws the keyboard out of the notebook
                (button.add_class if idle else button.remove_class)("mechlab-idle")

    def _show_pattern(self) -> None:
        if self.head is None:
            return
        row = self.prompt.value
        tokens = token_labels(self.trials.model, self.trials.prompt(row))
        pattern = self.trials.pattern(self.head)[row, : len(tokens), : len(tokens)]
        self.pattern.value = drawing.grid(pattern, tokens, f"Attention of {named([self.head])}")

    def _canvas(self) -> "ipywidgets.GridBox":
        """Buttons on a grid, over the drawing."""
        import ipywidgets as w

        width, height = self.plan.size
        self.drawn = w.HTML(layout=w.Layout(grid_area="1 / 1 / -1 / -1", margin="0", overflow="visible"))
        self.buttons = {}
        for head, (x, y) in sorted(self.plan.heads.items()):
            row, column = round(2 * (height - y)) - 1, 2 + round(2 * x - 1)
            area = f"{row} / {column} / {row + 2} / {column + 2}"
            place = w.Layout(grid_area=area, width="auto", height="auto", margin="2px 0", padding="0")
            button = w.Button(description=named([head]), layout=place, style=BUTTON)
            button.add_class("mechlab-head")
            button.on_click(self._careful(lambda _, head=head: self.choose(head)))
            self.buttons[head] = button
        columns = f"{LEFT}px repeat({round(2 * width)}, {wide(self.plan) // 2}px)"
        rows = f"repeat({round(2 * height)}, {HIGH // 2}px) {foot(self.circuit)}px"
        grid = {"grid_template_columns": columns, "grid_template_rows": rows, "grid_gap": "0"}
        layout = w.Layout(**grid, flex="0 0 auto", overflow="visible")
        return w.GridBox([self.drawn, *self.buttons.values()], layout=layout)

    def _careful(self, action: Callable) -> Callable:
        """`action`, one at a time, with a word while it runs and a sentence when it goes wrong."""

        def run(*given) -> None:
            with self.busy:
                self.status.value = '<p role="status">running…</p>'
                try:
                    action(*given)
                    self.status.value = ""
                except Exception as error:
                    said = html.escape(f"That did not work. {type(error).__name__}: {error}")
                    self.status.value = f'<p role="alert" style="color:#A00000"><b>{said}</b></p>'

        return run
