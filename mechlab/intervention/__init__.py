"""Can I change it? Move activations between runs, steer, remove a direction for good, edit a fact.

patching.py   which activations carry the answer? Put one run's activations into another, one at a time
tracing.py    where does a fact pass through? Noise on the subject, one state restored
resume.py     the engine under both: the rest of the model, from a changed layer and position on, exactly
"""
