"""What a run of the model is, what can be observed in it, and how to change it.

hooks.py     interventions that cannot leak and cannot silently miss
caching.py   what there is to observe, what it is called, what it costs
fast.py      a run that is kept: the rest of the model from a changed layer and position on, exactly
matrices.py  the matrices of a layer, and what norms, heads and MLPs compute with them
forward.py   one forward pass written out, for reading
sweeps.py    the same experiment many times, here or on a cluster
"""
