"""Circuits as pictures: one to look at, and one to touch.

`circuit_picture` draws heads by layer and position, and who reads whom. `circuit_explorer` has the same
layout; its heads are buttons that tell what a head does, and that take heads away.
"""

from mechlab.pictures.graph.explorer import circuit_explorer
from mechlab.pictures.graph.picture import circuit_picture

__all__ = ["circuit_explorer", "circuit_picture"]
