"""Results as figures, and as things to touch. Each picture says in words what it shows.

plots.py     figures of results, with their text twin
patterns.py  attention views
widgets.py   sliders and buttons where moving something teaches
boxes.py     what an explorer leaves in the file, for when no kernel answers
twins.py     the sentence under a picture, and the style that follows a dark theme
drawing.py   bars and tables as HTML
graph/       a circuit as a picture, and as one to touch
source.py    a function's source, shown in a notebook
"""
