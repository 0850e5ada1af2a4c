"""Results as figures, and as things to touch. Each picture says in words what it shows.

plots.py     figures of results, with their text twin
patterns.py  attention views
widgets.py   sliders and buttons where moving something teaches
boxes.py     what an explorer leaves in the file, for when no kernel answers
twins.py     the sentence under a picture, and the style that follows a dark theme
drawing.py   bars and tables as HTML
colours.py   colours, and what a sign looks like
touch.py     what explorers with buttons on a drawing share
graph/       a circuit as a picture, and as one to touch
tracing/     a contrast of two prompts, and groups of neurons to turn
source.py    a function's source, shown in a notebook
"""
