"""What is going on inside? Read it, test whether a property is there, see who looks where, take parts away, undo the mix.

lens.py           what would the model say if it stopped here
tuned_lens.py     a fitted map that makes that reading fair to early layers
probing.py        is a property in the activations, and what must a probe beat
ccs.py            a probe for truth without labels
attention.py      who looks where; what a head looks for and what it writes
ablation.py       what breaks without a part, in four ways
superposition.py  more features than dimensions, in toy models
sae.py            sparse autoencoders: train, load and save dictionaries
sae_evaluation.py what a dictionary is worth: the splice check
features.py       what is one feature about: inputs, outputs, intervention
"""
