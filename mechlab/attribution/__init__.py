"""Which inputs, which parts, which neurons made the model answer as it did?

inputs.py    which tokens: gradients, integrated gradients, occlusion, LIME, SHAP, Shapley values
rollout.py   which tokens, from attention alone
deletion.py  is an answer of these right? Deletion and insertion curves beside random orders
logits.py    which layers, heads, MLPs and neurons write the answer
neurons.py   which neurons, what switched them on, and what happens without them
contrast.py  which neurons, heads and norms carry the difference of two prompts, written out exactly
graphs.py    few of those neurons, who changed whom, and what is left over; for others' viewers too
readout.py   from the stream to a logit, through the norms on the way
masking.py   prompts with some tokens replaced: what the methods of inputs.py ask the model
"""
