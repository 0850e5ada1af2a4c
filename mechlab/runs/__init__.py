"""What a run of the model is, what can be observed in it, and how to change it.

run.py       what a run is, and what an edit of one is: the protocol that both engines keep
engines.py   `run_of`: which engine serves a run
plain.py     whole runs with hooks: slow, obvious, right for any model
fast.py      a run taken up at the layer and position where it is edited, exactly
matrices.py  the weights of a model, and what it computes with them
rotary.py    rotary positions
places.py    which positions: of a word, of a patch, of the first difference
hooks.py     interventions that cannot leak and cannot silently miss
caching.py   what there is to observe, what it is called, what it costs
forward.py   one forward pass written out, for reading
sweeps.py    the same experiment many times, here or on a cluster
contents.py  what a value or a function is, as a digest, so that a kept result is not an old one
"""
