"""Can I change it? Move activations between runs, steer, remove a direction for good, edit a fact.

patching.py   which activations carry the answer? Put one run's activations into another, one at a time
tracing.py    where does a fact pass through? Noise on the subject, one state restored
steering.py   can it be turned like a knob? Add a direction while the model reads, and read along one
groups.py     a few neurons at one place, chosen, turned like a knob, and read
weights.py    can it be removed for good? Take a direction out of all that writes
adapters.py   what somebody trained: LoRA adapters, added to the weights
edits.py      what every edit of weights is, and the way back
saving.py     the edited model as a folder; layout.py: where Hugging Face's matrices are in a bridge
rome.py       can a fact be rewritten? A rank-one edit of one MLP
"""
