"""Groups of neurons at a place: chosen, turned, read; and on the default model, a held-out city's language."""

import pytest
import torch

import mechlab as ml

KINDS = ("gqa", "gpt2")
GROUP = [(0, 3, 4), (2, 6, 11), (0, 6, 7), (1, 6, 2)]
TOKENS = torch.randint(5, 390, (2, 7), generator=torch.Generator().manual_seed(3))


def scores(*shape, seed=0):
    return ml.Scores(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), ("layer", "pos", "neuron"), "x"
    )


def seen(model, hooks=()):
    """What the group hands on in a run with some hooks, and the logits."""
    found = {}
    watch = [
        (f"blocks.{layer}.mlp.hook_post", lambda x, hook: found.update({hook.name: x.clone()}))
        for layer in range(3)
    ]
    with ml.intervene(model, [*hooks, *watch]):
        logits = model(TOKENS)
    return torch.stack([found[f"blocks.{layer}.mlp.hook_post"][:, p, n] for layer, p, n in GROUP], 1), logits


def test_a_group_is_the_largest_at_its_place():
    each = scores(3, 5, 48)
    group = ml.supernode(each, -2, 6)
    sizes = each.values[:, 3].abs()
    assert {place[1] for place in group} == {3} and len(set(group)) == 6
    assert min(sizes[layer, n] for layer, _, n in group) >= sizes.flatten().topk(7).values[-1]
    assert {place[0] for place in ml.supernode(each, 3, 6, layers=[1])} == {1}
    with pytest.raises(ValueError, match="k is 49, and there are 48 neurons"):
        ml.supernode(each, 3, 49, layers=[2])
    with pytest.raises(ValueError, match="by scores of neurons at positions"):
        ml.supernode(ml.Scores(torch.zeros(3, 5), ("layer", "pos"), "x"), 0, 1)


def test_groups_to_compare_with_are_of_the_same_places_and_sizes():
    sizes = scores(3, 5, 48)
    group = [(1, 2, 7), (1, 2, 9), (2, 2, 3)]
    drawn = ml.matched_groups(sizes, group, draws=30, nearest=5)
    assert len(drawn) == 30 and len({tuple(each) for each in drawn}) > 10
    for each in drawn:
        assert [place[:2] for place in each] == [place[:2] for place in group]
        assert len(set(each)) == 3 and not set(each) & set(group)
        for (layer, pos, old), (_, _, new) in zip(group, each, strict=True):
            far = (sizes.values[layer, pos].abs() - sizes.values[layer, pos, old].abs()).abs()
            assert far[new] <= far.sort().values[8]  # five, but for the group and those drawn already
    assert ml.matched_groups(sizes, group) == ml.matched_groups(sizes, group)
    with pytest.raises(ValueError, match="no neurons left at position 2"):
        ml.matched_groups(sizes, [(1, 2, n) for n in range(48)])
    with pytest.raises(ValueError, match="matched by sizes of neurons at positions"):
        ml.matched_groups(ml.Scores(torch.zeros(3, 5), ("layer", "pos"), "x"), group)
    with pytest.raises(ValueError, match="draws"):
        ml.matched_groups(sizes, group, draws=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_knob_puts_mirrors_and_goes_beyond(kind):
    model = ml.tiny(kind)
    own, clean = seen(model)
    assert torch.allclose(ml.group_values(model, TOKENS, GROUP), own, atol=1e-5)
    to, around = torch.randn(2, 4, generator=torch.Generator().manual_seed(5))
    # Only the first layer's neurons are as in the clean run: those behind move as well, live.
    first = [0, 2]
    for given, wanted in (
        ({"to": to}, to.expand(2, -1)),
        ({"to": to, "around": around, "times": 1.5}, (around + 1.5 * (to - around)).expand(2, -1)),
        ({"around": around, "times": 0.0}, around.expand(2, -1)),
        ({"to": torch.stack([to, around])}, torch.stack([to, around])),
    ):
        assert torch.allclose(seen(model, ml.group_hooks(model, GROUP, **given))[0], wanted, atol=1e-5), given
    mirrored, _ = seen(model, ml.group_hooks(model, GROUP, around=around, times=-1.0))
    assert torch.allclose(mirrored[:, first], (2 * around - own)[:, first], atol=1e-5)
    same, logits = seen(model, ml.group_hooks(model, GROUP, around=around, times=1.0))
    assert torch.allclose(same, own, atol=1e-5) and torch.allclose(logits, clean, atol=1e-4)


@torch.no_grad()
def test_nothing_else_is_touched_and_nothing_is_left_behind():
    model, before = ml.tiny("gqa"), ml.tiny("gqa")(TOKENS)
    seen(model, ml.group_hooks(model, GROUP, to=torch.zeros(4)))
    assert (model(TOKENS) == before).all()
    layer = {}
    with ml.intervene(model, [*ml.group_hooks(model, [(1, 6, 2)], to=torch.tensor([9.0])),
                              ("blocks.1.mlp.hook_post", lambda x, hook: layer.update(x=x.clone()))]):  # fmt: skip
        model(TOKENS)
    changed = layer["x"] != model.run_with_cache(TOKENS)[1]["blocks.1.mlp.hook_post"]
    assert changed.nonzero().tolist() == [[0, 6, 2], [1, 6, 2]]


def test_bad_groups_are_named():
    model = ml.tiny("gqa")
    for given, said in (
        ({}, "Say where to"),
        ({"to": torch.zeros(3)}, r"to is \(3,\), and there are 4 neurons"),
        ({"around": torch.zeros(2, 5)}, r"around is \(2, 5\), and there are 4 neurons"),
    ):
        with pytest.raises(ValueError, match=said):
            ml.group_hooks(model, GROUP, **given)
    with pytest.raises(ValueError, match="Layer 1 has neurons 0 to 47, and 48 is asked for"):
        ml.group_hooks(model, [(1, 2, 48)], to=torch.zeros(1))
    with pytest.raises(ValueError, match="no neuron 2 at position 7: 48 neurons, 7 positions"):
        ml.group_values(model, TOKENS, [(1, 7, 2)])
    with pytest.raises(ValueError, match="layer"):
        ml.group_values(model, TOKENS, [(3, 2, 2)])
    with pytest.raises(ValueError, match="Layer 1 has 48 neurons, and 99 is asked for"):
        ml.neuron_reads(model, (1, 99), ["a b", "c"])


def test_texts_of_any_length_are_read_at_their_own_end():
    model = ml.tiny("gqa")
    texts = ["In Paris they say", "In", "A much longer text, about nothing at all"]
    table = ml.neuron_reads(model, (2, 5), texts, names=["p", "i", "a"])
    by_hand = {}
    for name, text in zip("pia", texts, strict=True):
        by_hand[name] = model.run_with_cache(model.to_tokens(text))[1]["blocks.2.mlp.hook_post"][
            0, -1, 5
        ].item()
    assert dict(zip(table.text, table.activation, strict=True)) == pytest.approx(by_hand, abs=1e-5)
    assert table.activation.is_monotonic_decreasing


FEW_SHOT = "In Salzburg people speak German. In Rio people speak Portuguese. In {} people speak"
CITY = 15


@pytest.mark.model
@torch.no_grad()
def test_ten_neurons_at_a_city_turn_the_language_of_one_they_were_not_chosen_on():
    """Chosen on Munich, Berlin and Hamburg against Tokyo; turned on Frankfurt, beside three groups by chance."""
    model = ml.load()
    german, japanese = (model.to_single_token(word) for word in (" German", " Japanese"))
    at_home = [FEW_SHOT.format(city) for city in ("Munich", "Berlin", "Hamburg")]
    contrast = ml.Contrast(
        model, [FEW_SHOT.format("Tokyo")] * 3, at_home, ml.logit_difference(japanese, german)
    )
    frankfurt = FEW_SHOT.format("Frankfurt")

    def turned(group, times=1.5):
        here, there = (
            ml.group_values(model, each, group).mean(0) for each in (at_home, FEW_SHOT.format("Tokyo"))
        )
        with ml.intervene(model, ml.group_hooks(model, group, to=there, around=here, times=times)):
            return model(frankfurt)[0, -1].softmax(-1)[[german, japanese]].tolist()

    clean = model(frankfurt)[0, -1].softmax(-1)[[german, japanese]].tolist()
    assert clean == pytest.approx([0.53, 0.01], abs=0.02)
    group = ml.supernode(contrast.totals(), CITY, 10)
    assert turned(group) == pytest.approx([0.10, 0.75], abs=0.03)
    assert turned(group, 0.0)[1] < 0.03  # where the German cities are
    for others in ml.matched_groups(contrast.changes(), group, draws=3):
        assert turned(others)[1] < 0.1


@pytest.mark.model
@torch.no_grad()
def test_five_neurons_make_the_plural_of_nouns_they_were_not_chosen_on():
    """Chosen on four nouns, turned on four others, beside groups by chance; weights drawn anew have no such group."""
    nouns = ["key", "dog", "picture", "car", "boy", "book", "teacher", "tree"]
    plural, singular = ([f"The {noun}{s} to the old cabinet" for noun in nouns] for s in ("s", ""))

    def moved(model):
        """The share of the way from singular to plural, for the other four nouns."""
        metric = ml.logit_difference(*(ml.single_token(model, word) for word in (" are", " is")))
        contrast = ml.Contrast(model, plural[:4], singular[:4], metric)
        chosen = ml.supernode(contrast.totals(), 2, 5)
        ends = [metric(model(rows[4:])).mean().item() for rows in (singular, plural)]
        found = []
        for group in (chosen, *ml.matched_groups(contrast.changes(), chosen, draws=3)):
            to, around = (
                ml.group_values(model, run, group).mean(0) for run in (contrast.base, contrast.source)
            )
            with ml.intervene(model, ml.group_hooks(model, group, to=to, around=around, times=1.0)):
                found.append((metric(model(singular[4:])).mean().item() - ends[0]) / (ends[1] - ends[0]))
        return found

    model = ml.load()
    ours, *chance = moved(model)
    assert ours == pytest.approx(1.15, abs=0.15) and max(map(abs, chance)) < 0.4
    assert abs(moved(ml.random_weights(model))[0]) < 0.7
