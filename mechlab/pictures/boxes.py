"""Explorers in a saved file: what is left of one when no kernel answers."""

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ipywidgets

AWAKE = "This is a copy from when the cell was run. Run the cell again to move the controls."
WHOLE = "mechlab-whole"
# The sentence shows where no kernel answers, in place of the broken links that ipywidgets would draw.
SLEEPING = """<style>
.mechlab-lasting.jupyter-widgets-disconnected::before,
.mechlab-lasting .jupyter-widgets-disconnected::before { content: none !important; }
.widget-html:not(.jupyter-widgets-disconnected) .mechlab-awake { display: none; }
</style>"""
# ipywidgets draws the words of a slider beside it and does not say them to a screen reader. An image that
# cannot be loaded is the only way to run a line of script from a widget.
NAMED = """<img hidden alt="" src="data:," onerror="const box = this.closest('.mechlab-lasting');
setTimeout(() => box && box.querySelectorAll('.widget-slider').forEach(each => {
  const name = each.querySelector('.widget-label').textContent;
  each.querySelectorAll('.noUi-handle').forEach(part => part.setAttribute('aria-label', name));
  each.querySelectorAll('.widget-readout[contenteditable]').forEach(part => {
    part.setAttribute('role', 'textbox'); part.setAttribute('aria-label', name + ', as a number'); });
}), 500)">"""


def lasting(box: "ipywidgets.Box") -> "ipywidgets.Box":
    """`box` with a copy for programs that show no widgets, and a sentence for when no kernel answers.

    JupyterLab keeps the state of widgets in the file, so they are drawn after reopening, and do not move.
    """
    import ipywidgets as w

    line = f'<p class="mechlab-awake" style="margin:4px 0 0"><b>{AWAKE}</b></p>'
    box.children = (*box.children, w.HTML(SLEEPING + NAMED + line, layout=w.Layout(margin="0")))
    box.add_class("mechlab-lasting")
    own = box._repr_mimebundle_

    def bundle(**given) -> dict:
        copy = f'<div class="mechlab-explorer">{still(box)}</div>'
        return {**own(**given), "text/html": copy, "text/plain": f"An explorer. {AWAKE}"}

    _replaces(box)
    setattr(box, "_repr_mimebundle_", bundle)  # noqa: B010 (IPython asks the object before its class)
    return box


def still(box: "ipywidgets.Box") -> str:
    """What a box shows now, as HTML: where its controls stand, and what is written and drawn."""
    import ipywidgets as w

    said = ""
    for child in box.children:
        if isinstance(child, w.HTML):
            said += child.value
        elif isinstance(child, w.Box):
            said += _drawing(child) if isinstance(child, w.GridBox) else still(child)
        elif child.description and not isinstance(child, (w.Button, w.Checkbox, w.Text)):
            value = getattr(child, "label", None) or child.value
            said += "" if value is None else f"<p>{html.escape(f'{child.description}: {value}')}</p>"
    return said


def _drawing(grid: "ipywidgets.GridBox") -> str:
    """The drawing under the buttons of a grid, where it says all by itself: then it has the class WHOLE."""
    return "".join(child.value for child in grid.children if WHOLE in child._dom_classes)


_OPEN: "dict[str, tuple[str, list[ipywidgets.Box]]]" = {}  # cell -> its run, and the boxes of that run


def _replaces(box: "ipywidgets.Box") -> None:
    """Close what the same cell made when it last ran: it would stay in the kernel, and in the saved file."""
    from IPython import get_ipython

    asked = getattr(get_ipython(), "get_parent", dict)()
    cell, run = asked.get("metadata", {}).get("cellId"), asked.get("header", {}).get("msg_id", "")
    if cell is None:
        return
    last, boxes = _OPEN.get(cell, (run, []))
    if last != run:
        for old in boxes:
            _close(old)
        boxes = []
    _OPEN[cell] = (run, [*boxes, box])


def _close(widget: "ipywidgets.Widget") -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None), widget):
        if part is not None:
            part.close()
