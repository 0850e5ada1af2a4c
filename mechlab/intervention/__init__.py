"""Can I change it? Move activations between runs, exactly and fast.

resume.py   the rest of the model, from a changed layer and position on: the engine of every sweep
"""
