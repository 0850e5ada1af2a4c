"""A circuit to touch: click a head and see what it does; take some away and see what is left."""

from typing import TYPE_CHECKING

from mechlab.circuits.circuits import Circuit, Head
from mechlab.circuits.knockouts import CircuitRuns
from mechlab.pictures import drawing
from mechlab.pictures.boxes import lasting
from mechlab.pictures.graph.plan import Plan, lay_out
from mechlab.pictures.graph.svg import HIGH, LEFT, circuit_svg, foot, wide
from mechlab.pictures.graph.trials import Trials
from mechlab.pictures.graph.words import described, head_told, removal_told, together_told
from mechlab.pictures.touch import LOOK, Care, beside, canvas
from mechlab.pictures.twins import PAPER, STYLE
from mechlab.results import named, token_labels

if TYPE_CHECKING:
    import ipywidgets


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
        self.told, self.removal, self.together, self.status, self.pattern = (w.HTML() for _ in range(5))
        self.careful = Care(self.status)
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
        self.role.on_click(self.careful(lambda _: self._remove(self.removed | self._fellows())))
        self.back.on_click(self.careful(lambda _: self._remove(set())))
        self.prompt.observe(self.careful(lambda _: self._show_pattern()), names="value")
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
        style = w.HTML(STYLE + LOOK, layout=w.Layout(display="none"))
        box = w.Box([style, self._canvas(), beside(parts, 600)], layout=wrap)
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
        with self.careful.busy:
            if change["new"] != (self.head in self.removed):  # a person did it, not `_mark`
                self.careful(self._remove)(self.removed ^ {self.head})

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
        places = {}
        for head, (x, y) in sorted(self.plan.heads.items()):
            row, column = round(2 * (height - y)) - 1, 2 + round(2 * x - 1)
            places[named([head])] = row, column, row + 2, column + 2
        columns = f"{LEFT}px repeat({round(2 * width)}, {wide(self.plan) // 2}px)"
        rows = f"repeat({round(2 * height)}, {HIGH // 2}px) {foot(self.circuit)}px"
        self.drawn = w.HTML()
        box, buttons = canvas(self.drawn, places, columns, rows)
        self.buttons = dict(zip(sorted(self.plan.heads), buttons.values(), strict=True))
        for head, button in self.buttons.items():
            button.on_click(self.careful(lambda _, head=head: self.choose(head)))
        return box
