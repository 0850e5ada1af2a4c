"""CircuitsVis' picture of attention patterns, drawn without the network, with its text twin.

CircuitsVis' own display asks the internet each time and carries its script (1.3 MB) each time. Here one
notebook holds the script once.
"""

import html
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float

from mechlab.pictures.plots import in_colab
from mechlab.pictures.twins import PAPER, STYLE, show_words

# The heads to choose from on the left, the one chosen on the right: both in sight on a small screen.
BESIDE = """<style>
[id^="attention-"] { background: #fff; color: #222; padding: 8px 0; }
[id^="attention-"] > div { display: grid; grid-template: auto 1fr / 270px minmax(300px, 500px);
  column-gap: 32px; max-width: none !important; margin: 0 !important; }
[id^="attention-"] > div > h3 { margin: 0 0 8px !important; font-size: 14px; }
[id^="attention-"] > div > :nth-child(2) { align-content: start; max-height: 500px; overflow-y: auto; }
[id^="attention-"] > div > :nth-child(2) > div { flex-basis: 33% !important; max-width: 33% !important; }
[id^="attention-"] > div > :nth-child(3) { grid-area: 1 / 2 / 3 / 3; }
[id^="attention-"] > div > :nth-child(3) h3 { margin: 0 0 8px !important; font-size: 14px; }
</style>"""

# CircuitsVis listens to the mouse only, and its canvases have no names: each head becomes a button.
REACHED = """(function reach(n) {
  const box = document.getElementById("NAME"), heads = box ? box.querySelectorAll("h4") : [];
  if (!heads.length) return n && setTimeout(reach, 100, n - 1);
  box.setAttribute("role", "group");
  box.querySelectorAll("canvas").forEach(each => each.setAttribute("aria-hidden", "true"));
  box.querySelectorAll("h2, h3").forEach(each => each.setAttribute("role", "presentation"));
  heads.forEach(each => {
    Object.entries({role: "button", tabindex: 0, "aria-label": "show head " + each.textContent}).forEach(
      ([name, value]) => each.setAttribute(name, value));
    each.addEventListener("keydown", pressed => {
      if (pressed.key == "Enter" || pressed.key == " ") { each.click(); pressed.preventDefault(); } });
  });
})(60)"""


@dataclass
class AttentionView:
    """CircuitsVis' picture of attention patterns, drawn without the network, and its text twin."""

    props: dict
    text: str

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display({"text/html": self.to_html(_script_needed()), "text/plain": self.text}, raw=True)
        show_words(self.text)

    def __repr__(self) -> str:
        return f"AttentionView: {self.text}"

    def to_html(self, with_script: bool = True) -> str:
        """The view as HTML. Only the first one of a page needs the script (1.3 MB), the others a few KB.

        CircuitsVis' own display asks the internet each time and carries the script each time.
        """
        name = f"attention-{uuid.uuid4().hex[:12]}"
        props = json.dumps(self.props).replace("</", "<\\/")  # a token may be "</script>"
        draw = f"CircuitsVis.render('{name}', CircuitsVis.AttentionHeads, {props})"
        told = f'role="img" aria-label="{html.escape(self.text, quote=True)}"'
        excuse = "Run the first attention view of this notebook again, then this cell."
        return (
            (f"<script>{_circuitsvis()};window.CircuitsVis=CircuitsVis;</script>" if with_script else "")
            + STYLE
            + BESIDE
            + f'<div id="{name}" class="{PAPER}" {told}></div>'
            + f"<script>(function wait(n) {{ if (window.CircuitsVis) {draw}; "
            + "else if (n) setTimeout(wait, 100, n - 1);"
            + f' else document.getElementById("{name}").textContent = "{excuse}"; }})(50);'
            + f"{REACHED.replace('NAME', name)}</script>"
        )


def attention_view(
    pattern: Float[torch.Tensor, "head query_pos key_pos"], tokens: Sequence[str], heads: Sequence[str]
) -> AttentionView:
    """Attention patterns of some heads over one prompt: who looks where. Click a head to keep it.

    pattern: `cache["pattern", layer][prompt]`, or some of its heads. heads: their names, such as "20.0".
    """
    if tuple(pattern.shape) != (len(heads), len(tokens), len(tokens)):
        raise ValueError(
            f"pattern is {tuple(pattern.shape)}; with {len(heads)} heads and {len(tokens)} tokens it must be "
            f"({len(heads)}, {len(tokens)}, {len(tokens)})."
        )
    tokens = list(tokens)
    last = pattern[:, -1].argmax(-1)
    looks = ", ".join(
        f"{head} looks at {tokens[int(i)]!r} {int(i)} ({pattern[n, -1, i]:.2f})"
        for n, (head, i) in enumerate(zip(heads, last, strict=True))
    )
    values = pattern.detach().float().cpu().numpy().round(3).tolist()
    props = {"tokens": tokens, "attention": values, "attentionHeadNames": list(heads), "maskUpperTri": True}
    return AttentionView(props, f"Attention patterns of {len(heads)} heads. From the last token, {looks}.")


def _circuitsvis() -> str:
    """CircuitsVis' bundled JavaScript, from the installed package."""
    from importlib.util import find_spec

    found = find_spec("circuitsvis")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("CircuitsVis is not installed: pip install circuitsvis")
    folder = Path(found.origin).parent
    return (folder / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8").replace("</script>", "")


def _script_needed() -> bool:
    """True in the first cell of a kernel that shows a view, each time it runs, and always in Colab."""
    from IPython import get_ipython

    shell = get_ipython()
    if in_colab() or shell is None:  # each Colab output is a page of its own
        return True
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    this_cell = parent.get("metadata", {}).get("cellId") or parent.get("header", {}).get("msg_id")
    return shell.user_ns.setdefault("_attention_script_cell", this_cell) == this_cell
