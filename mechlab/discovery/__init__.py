"""What is going on inside: is a property there, who looks where, what breaks without a part, what is the mix?

streams.py         the residual stream on entering each layer
lens.py            what would the model say if it stopped here
tuned_lens.py      a fitted or trained map that makes that reading fair to early layers
nulls.py           what a direction found in data is compared with
probing.py         is a property in the activations, and what must a probe beat
ccs.py             a probe for truth without labels
attention.py       who looks where; what a head looks for and what it writes
ablation.py        what breaks without a part, in four ways
superposition.py   more features than dimensions, in toy models
sae.py             sparse autoencoders: train, load and save dictionaries
sae_formats.py     dictionaries that others published
sae_evaluation.py  what a dictionary is worth: the splice check
features.py        what is one feature about: inputs, outputs, intervention
predicates.py      what can be said about a token and what stands before it
explaining.py      explanations that are programs, scored beside a look-up table
labels.py          such an explanation for each feature of a dictionary
"""
