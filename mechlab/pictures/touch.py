"""What explorers with buttons on a drawing share: their look, the grid, and care with what goes wrong."""

import html
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ipywidgets

Area = tuple[int, int, int, int]  # of a CSS grid: row, column, and those behind the last
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
.mechlab-circuit .mechlab-chosen { box-shadow: inset 0 0 0 2.5px #222; }
.mechlab-circuit input[type="checkbox"] { vertical-align: middle; margin-top: 0; }
.mechlab-circuit button:focus-visible { outline: 3px solid #0072B2; }
.mechlab-circuit .mechlab-idle { opacity: .6; }
.mechlab-circuit .widget-tab > .widget-tab-contents { padding: 6px 8px; }
</style>"""
BUTTON = {"button_color": "transparent", "text_color": "#222222", "font_weight": "bold", "font_size": "12px"}


def canvas(
    drawn: "ipywidgets.HTML",
    places: Mapping[str, Area],
    columns: str,
    rows: str,
    *,
    margin: str = "2px 0",
    style: Mapping[str, str] = BUTTON,
) -> "tuple[ipywidgets.GridBox, dict[str, ipywidgets.Button]]":
    """Buttons on a grid, over a drawing; and each button by its name.

    places: name -> where it stands; columns, rows: of the grid, as in CSS
    """
    import ipywidgets as w

    drawn.layout = w.Layout(grid_area="1 / 1 / -1 / -1", margin="0", overflow="visible")
    buttons = {}
    for name, area in places.items():
        place = w.Layout(grid_area=" / ".join(map(str, area)), width="auto", height="auto", padding="0")
        place.margin = margin
        buttons[name] = w.Button(description=name, layout=place, style={**style})
        buttons[name].add_class("mechlab-head")
    grid = {"grid_template_columns": columns, "grid_template_rows": rows, "grid_gap": "0"}
    layout = w.Layout(**grid, flex="0 0 auto", overflow="visible")
    return w.GridBox([drawn, *buttons.values()], layout=layout), buttons


def beside(children: "Sequence[ipywidgets.Widget]", high: int) -> "ipywidgets.VBox":
    """What is told and turned beside a drawing that is `high` pixels high."""
    import ipywidgets as w

    size = {"flex": "1 1 330px", "min_width": "330px", "max_width": "620px", "margin": "0 0 0 8px"}
    size |= {"max_height": f"{high}px", "overflow": "hidden auto"}
    return w.VBox([*children], layout=w.Layout(**size))


class Care:
    """Runs one action at a time, with a word while it runs and a sentence when it goes wrong."""

    def __init__(self, status: "ipywidgets.HTML"):
        self.status = status
        self.busy = threading.RLock()  # JupyterLab answers clicks and changes in two threads

    def __call__(self, action: Callable) -> Callable:
        """`action`, with care."""

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
