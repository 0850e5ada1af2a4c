"""What goes with a picture: its sentence, folded under it, and a style that lets it follow a dark theme.

Pictures are drawn on white paper. Where JupyterLab's theme is dark, everything of class `mechlab-paper` and
every plotly figure is turned: light becomes dark, and each hue stays. Without the style (a notebook that is
not trusted, GitHub, paper) they stay white and readable.
"""

import html

PAPER, WORDS = "mechlab-paper", "mechlab-words"
STORED = f".jp-OutputArea-child:has(+ * .{WORDS}) .jp-RenderedImage"  # the PNG of a file, above its words
STYLE = (
    f'<style>[data-jp-theme-light="false"] :is(.{PAPER},.jp-RenderedPlotly,{STORED})'
    "{filter:invert(.93) hue-rotate(180deg)}</style>"
)


def show_words(text: str) -> None:
    """The sentence that says what the picture above shows: folded in a notebook, a line elsewhere."""
    from IPython.display import display

    look = "max-width:720px;font-size:12px;overflow-wrap:break-word;opacity:.8"
    folded = f'<details class="{WORDS}" style="{look}"><summary>In words</summary>'
    folded += f"{html.escape(text)}</details>"
    display({"text/html": folded + STYLE, "text/plain": f"In words: {text}"}, raw=True)
