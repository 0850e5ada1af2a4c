"""A contrast of two prompts as a picture to touch: what the change goes through, and groups to turn.

flow.py      what is drawn and told, as plain values that a file can hold
drawn.py     the drawing: the same in a notebook and on a page without a model
told.py      what is told beside it, likewise
turning.py   the model behind: a contrast as a flow, and what groups do when they are turned
explorer.py  the sliders and buttons in a notebook
graphs.py    an attribution graph as a figure

flow.py, drawn.py and told.py need neither torch nor a model: the web site draws with them.
"""
