"""Can I change it? Move activations between runs, steer, remove a direction for good, edit a fact.

patching.py   which activations carry the answer? Put one run's activations into another, one at a time
tracing.py    where does a fact pass through? Noise on the subject, one state restored
steering.py   can it be turned like a knob? Add a direction while the model reads, and read along one
weights.py    can it be removed for good? Orthogonalize, add an adapter, save; every edit can be undone
rome.py       can a fact be rewritten? A rank-one edit of one MLP
"""
