"""A contrast to touch: what the change goes through, and groups of neurons that turn the answer."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechlab.attribution.contrast import Contrast
from mechlab.pictures.boxes import WHOLE, lasting
from mechlab.pictures.touch import LOOK, Care, beside, canvas
from mechlab.pictures.tracing import drawn, told
from mechlab.pictures.tracing.flow import Flow, Inside, Turn
from mechlab.pictures.tracing.turning import Insides, Knob, Turning, flow_of
from mechlab.pictures.twins import PAPER, STYLE, WORDS
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    import ipywidgets

BUTTON = {"button_color": "transparent", "text_color": "transparent"}  # the drawing has the names
NOBODY = "nothing"
HOW = (
    "<p>0 leaves a group as it is. +1 adds the whole step from one mean to the other, −1 takes as much away. "
    "All else computes on.</p>"
)
CHOOSE = "<p><b>Look inside</b>: click a square or a circle, or go to it with Tab and press Enter.</p>"


def tracing_explorer(
    contrast: Contrast,
    prompt: Prompts,
    knobs: Sequence[Knob],
    late: Knob | Sequence[Knob] = (),
    *,
    names: tuple[str, str] = ("base", "source"),
    title: str = "metric",
    texts: Mapping[str, str] | None = None,
    most: int = 20,
) -> "ipywidgets.Box":
    """What a change between two prompts goes through, and sliders that turn groups of neurons in a third.

    prompt: one, best none of the contrast's own: groups that were chosen on it prove little
    knobs:  groups to turn, the change to the goal being 1; one of them chosen by chance is the control
    late:   groups to watch: how far they have gone to their goal; one of them can be held where it was
    names:  what to call base and source; title: what changes, with its unit
    texts:  name -> text, at whose ends neurons of early layers are read; others are told by what they write
    most:   heads and MLPs that are drawn, those that most of the change goes through
    """
    watched = [late] if isinstance(late, Knob) else [*late]
    turning = Turning(contrast.model, prompt, knobs, watched)
    flow = flow_of(contrast, names=names, title=title, most=most)
    return _Explorer(flow, Insides(contrast, texts), turning).box


class _Explorer:
    """The widgets: how the groups stand, what the model says then, and the part that is looked into."""

    def __init__(self, flow: Flow, insides: Insides, turning: Turning):
        import ipywidgets as w

        self.flow, self.insides, self.turning = flow, insides, turning
        self.known: dict[str, Inside] = {}
        self.status, self.result, self.told = (w.HTML() for _ in range(3))
        self.careful = Care(self.status)
        self.sliders = [self._slider(f"{each.name} ({len(each.neurons)} neurons)") for each in turning.knobs]
        held = [(NOBODY, None), *((each.name, n) for n, each in enumerate(turning.late))]
        self.held = w.Dropdown(options=held, description="hold where it was", style=_FREE)
        self.held.layout = w.Layout(width="auto", display="" if turning.late else "none")
        self.back = w.Button(description="All back to 0", layout=w.Layout(width="auto"))
        self.quiet = False
        for control in (*self.sliders, self.held):
            control.observe(self._changed, names="value")
        self.back.on_click(self._reset)
        self.box = self._arranged()
        self._turn()

    @staticmethod
    def _slider(name: str) -> "ipywidgets.FloatSlider":
        import ipywidgets as w

        ends = {"min": -2.0, "max": 2.0, "step": 0.25, "readout_format": "+.2f"}
        look = {"style": _FREE, "layout": w.Layout(width="98%"), "continuous_update": False}
        return w.FloatSlider(0.0, description=name, **ends, **look)

    def _arranged(self) -> "ipywidgets.Box":
        """The drawing with its buttons, and beside it what is turned and told."""
        import ipywidgets as w

        layout = drawn.Layout(self.flow)
        parts = {self.flow.called(part): (part, area) for part, area in layout.places()}
        picture = w.HTML(drawn.flow_svg(self.flow))
        picture.add_class(WHOLE)
        places = {name: area for name, (_, area) in parts.items()}
        grid, self.buttons = canvas(picture, places, *layout.grid, margin="1px", style=BUTTON)
        for name, button in self.buttons.items():
            part = parts[name][0]
            button.tooltip = f"{name}: {part.share:+.2f} of the change"
            button.on_click(self.careful(lambda _, name=name, part=part: self._look(name, part)))
        self.told.value = CHOOSE
        words = f'<details class="{WORDS}"><summary>In words</summary>{html.escape(told.in_words(self.flow))}'
        prompt = self.turning.model.to_string(self.turning.batch.tokens[0, 1:])
        asked = w.HTML(f"<p>Turned in: <code>{html.escape(str(prompt))}</code></p>")
        wrap = w.Layout(flex_flow="row wrap")
        controls = [*self.sliders, w.HBox([self.held, self.back], layout=wrap)]
        rest = [self.status, self.result, self.told, w.HTML(words)]
        panel = beside([asked, w.HTML(HOW), *controls, *rest], max(layout.size[1], 600))
        style = w.HTML(STYLE + LOOK, layout=w.Layout(display="none"))
        box = w.Box([style, grid, panel], layout=wrap)
        for name in ("mechlab-circuit", PAPER):
            box.add_class(name)
        return lasting(box)

    def _look(self, name: str, part) -> None:
        for other, button in self.buttons.items():
            (button.add_class if other == name else button.remove_class)("mechlab-chosen")
        self.told.value = told.told(self.flow, part)
        if part.head is None:
            if name not in self.known:
                self.known[name] = self.insides.of(part)
            self.told.value = told.told(self.flow, part, self.known[name])

    def _changed(self, _) -> None:
        if not self.quiet:
            self.careful(self._turn)()

    def _reset(self, _) -> None:
        with self.careful.busy:
            self.quiet = True
            for slider in self.sliders:
                slider.value = 0.0
            self.held.value = None
            self.quiet = False
        self.careful(self._turn)()

    def _turn(self) -> None:
        """Run the model with the groups as the sliders stand."""
        turn: Turn = tuple(slider.value for slider in self.sliders), self.held.value
        (step,) = self.turning.steps([turn])
        late = [each.name for each in self.turning.late]
        said = told.sentence([each.name for each in self.turning.knobs], late, turn, step)
        needles = "".join(told.needle(*pair) for pair in zip(late, step.gone, strict=True))
        shown = f'<p role="status" class="mechlab-said">{html.escape(said)}</p>'
        self.result.value = told.likely(step) + needles + shown


_FREE = {"description_width": "initial"}
