"""One sentence for each refusal."""

import pytest
import torch

from mechlab import arguments
from mechlab.arguments import at_least, check_layer, mlp_width, whole
from tests.architectures import kept


def test_what_is_there_is_given_back(tiny):
    assert arguments.layers_of(tiny) == [0, 1, 2] and arguments.layers_of(tiny, (2, 0)) == [2, 0]
    assert arguments.check_head(tiny, (2, 3)) == (2, 3) and arguments.check_layer(tiny, 1) == 1
    assert arguments.all_heads(tiny)[:5] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert arguments.layer_of("blocks.12.attn.hook_z") == 12
    arguments.one_of("how", "mean", ("zero", "mean"))


def test_what_is_not_there_is_named(tiny):
    with pytest.raises(ValueError, match="how is 'half'; it must be one of 'zero', 'mean'"):
        arguments.one_of("how", "half", ("zero", "mean"))
    for layers in ([0, 3], [], [-1]):
        with pytest.raises(ValueError, match="the model has layers 0 to 2"):
            arguments.layers_of(tiny, layers)
    with pytest.raises(ValueError, match="There is no layer 3: this model has layers 0 to 2"):
        arguments.check_layer(tiny, 3)
    with pytest.raises(ValueError, match=r"There is no head 2\.4: layers go from 0 to 2, heads from 0 to 3"):
        arguments.check_head(tiny, (2, 4))


def test_key_value_heads(gqa):
    assert arguments.key_value_heads(gqa) == 2


def test_only_whole_numbers_are_layers_and_counts(gqa):
    for value, is_one in (
        (1, True),
        (torch.tensor(1), True),
        (True, False),
        (1.0, False),
        (torch.tensor(True), False),
    ):
        assert whole(value) == is_one
    for layer in (1.5, -1, 3, True):
        with pytest.raises(ValueError, match=f"There is no layer {layer}: this model has layers 0 to 2"):
            check_layer(gqa, layer)
    for value in (0, 1.5, None, True):
        with pytest.raises(ValueError, match=rf"draws is {value}; it must be a whole number of at least 1"):
            at_least("draws", value, 1)


def test_neurons_are_counted_by_the_matrices():
    assert mlp_width(kept("OPT")) == 48 != kept("OPT").cfg.d_mlp
    with pytest.raises(ValueError, match=r"The MLP of layer 0 is a MoEBridge.*mixture of experts"):
        mlp_width(kept("Mixtral"))
