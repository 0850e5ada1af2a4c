"""Checks of notebook 31, activation patching and causal tracing."""

import torch
from torch import Tensor

from mechlab.runs.hooks import intervene, replace_with
from mechlab_course.checking import close, is_like, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("31.1")
def check_patched_run(attempt: Attempt) -> str:
    import mechlab as ml

    for kind, layer, head, seed in (("gqa", 1, 2, 0), ("gpt2", 0, 1, 1), ("gqa", 0, 3, 2)):
        model = ml.tiny(kind)
        head = min(head, model.cfg.n_heads - 1)
        tokens = torch.randint(5, 60, (2, 3, 6 + seed), generator=seeded(seed))
        tokens[1, 2] = tokens[0, 2]  # one prompt is the same in both
        base, source = tokens
        before = _hooks(model)
        with torch.no_grad():
            plain, others = model(base), model(source)
        found = attempt.tensor(
            model, base, source, layer, head, shape=tuple(plain.shape), axes="prompt, pos, d_vocab"
        )
        left = _hooks(model) - before
        with torch.no_grad():
            again = model(base)
        if left or not close(again, plain):
            model.reset_hooks()
            raise NotYet(
                "Your hook is still on the model after the function returns, and would change every later run. Use "
                "`with ml.intervene(...)` or `with model.hooks(...)`."
            )
        run = lambda *given, model=model: _patched(model, *given)
        expected = run(base, source, layer, head)
        heads, layers = model.cfg.n_heads, model.cfg.n_layers
        last = torch.zeros(base.shape[1], dtype=torch.bool)
        last[-1] = True
        one = lambda n, k, run=run, base=base, source=source: run(base, source, n, k)
        likes = {
            "These are the logits of the run on base, unchanged. Is the cache that of source, and the changed copy returned?": plain,
            "These are the logits of the run on source. The model must read `base`.": others,
            "base and source are exchanged: the model reads `base`, the cache comes from `source`.": run(source, base, layer, head),
            "All heads of the layer are replaced. Only the one that is named should be.": one(layer, None),
            "You patched only at the last position. Patch all positions.": run(base, source, layer, head, last),
            "You patched every position but the last.": run(base, source, layer, head, ~last),
            "You patched only the first prompt. Patch all of them.": torch.cat([expected[:1], plain[1:]]),
            "The activation is set to zero. Take it from the run on source.": run(base, None, layer, head),
        }  # fmt: skip
        likes |= {f"That is head {n}, not head {head}.": one(layer, n) for n in range(heads) if n != head}
        likes |= {f"That is layer {n}, not layer {layer}.": one(n, head) for n in range(layers) if n != layer}
        is_like(found, {why: like for why, like in likes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
        if not close(found[2], plain[2]):
            raise NotYet("Where base and source are the same prompt, a patch must change nothing.")
    return (
        "One head, all positions, on three models; a prompt into itself changes nothing, and no hook is left."
    )


def _hooks(model) -> int:
    return sum(len(point.fwd_hooks) for point in model.hook_dict.values())


def _patched(model, base, source, layer, head, where=None) -> Tensor:
    name = f"blocks.{layer}.attn.hook_z"
    with torch.no_grad():
        if source is not None:
            _, cache = model.run_with_cache(source, names_filter=name)
            value = cache[name]
        else:
            value = torch.zeros(*base.shape, model.cfg.n_heads, model.cfg.d_head)
        positions = None if where is None else where.nonzero()[:, 0].tolist()
        with intervene(model, replace_with(name, value, positions=positions, head=head)):
            return model(base)


@checker("31.2")
def check_share(attempt: Attempt) -> str:
    for n, shift, seed in ((5, 3.0, 0), (4, -8.0, 4), (16, -2.0, 1), (3, 6.0, 2), (9, 0.4, 3)):
        base = random(n, seed=seed)
        source = random(n, seed=seed + 10) + shift
        patched = base + (0.3, -0.4, 1.3, 0.6, 1.0)[seed] * shift + 0.2 * random(n, seed=seed + 20)
        source[0] = base[0] + 0.01  # a prompt whose two runs nearly agree
        found = _number(attempt(patched, base, source))
        change, whole = patched - base, source - base
        expected = (change.mean() / whole.mean()).item()
        middle = change.median() / whole.median()
        sizes = change.abs().mean() / whole.abs().mean()
        likes = {
            "That is the mean of the ratios. A prompt whose two runs nearly agree rules it. Take the means first, then one ratio.": (change / whole).mean(),
            "Your scale starts from source: 0 must be base (the patch did nothing), 1 source.": 1 - expected,
            "base is missing in the denominator: the whole way is source − base.": change.mean() / source.mean(),
            "base is missing in the numerator: the way gone is patched − base.": patched.mean() / whole.mean(),
            "That is patched / source. Measure both from base.": patched.mean() / source.mean(),
            "That is the change in the metric's own unit. Divide by source − base.": change.mean(),
            "The sign is turned round.": -expected,
            "You took the sizes of the changes. Signs matter: a patch can go the wrong way.": sizes,
            "You took the absolute value. A patch can go the wrong way, and then it is below 0.": abs(expected),
            "You used medians. The scale is of means.": middle,
        }  # fmt: skip
        near = lambda value, found=found: abs(float(value) - found) < 1e-3 * max(1.0, abs(found))
        if not near(expected):
            for why, like in likes.items():
                if near(like):
                    raise NotYet(why)
            if found == 0 and shift < 0 < expected:
                raise NotYet(
                    "Here source lies below base, and you return 0. Only where the two are equal is it 0: `.abs()`."
                )
            if abs(found - min(max(expected, 0.0), 1.0)) < 1e-3:
                raise NotYet(
                    f"The share is {expected:.2f} and you return {found:.2f}. It can be above 1 (too far) and below 0 (the wrong way): "
                    "do not cut it off."
                )
            raise NotYet(f"On {n} random prompts the share is {expected:.3f}, and yours is {found:.3f}.")
    small = _number(attempt(*(torch.tensor([x * 1e-6]) for x in (3, 1, 5))))
    if abs(small - 0.5) > 2e-2:
        raise NotYet(
            f"From 0.000001 to 0.000005 the way is short, but not zero: 0.000003 is half of it, and yours is {small:.3f}. Probabilities are that small."
        )
    for base in (torch.tensor([1.0, 2.0, 4.0]), torch.zeros(2)):
        same = attempt(base, base, base)
        value = _number(same, "With base and source equal your share is not a number (0 / 0). There it is 0.")
        if abs(value) > 1e-6:
            raise NotYet(f"With base, source and patched equal the share is 0, and yours is {value:.3f}.")
    crossed = _number(
        attempt(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])),
        "The means of base and source can be equal although the prompts differ; then your share is not a number. There it is 0.",
    )
    if abs(crossed) > 1e-6:
        raise NotYet("Where the means of base and source are equal and nothing changed, the share is 0.")
    ends = [
        _number(attempt(x, torch.tensor([-4.0, -5.0]), torch.tensor([5.0, 4.0])))
        for x in (torch.tensor([-4.0, -5.0]), torch.tensor([5.0, 4.0]))
    ]
    if abs(ends[0]) > 1e-5 or abs(ends[1] - 1) > 1e-5:
        raise NotYet(
            f"Nothing done must give 0 and everything 1; yours gives {ends[0]:.2f} and {ends[1]:.2f}."
        )
    return "0 for nothing, 1 for everything, below 0 and above 1 where it belongs, and never NaN."


def _number(value, when_nan: str = "Your share is not a number (NaN) or infinite.") -> float:
    try:
        value = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet("Return one number: the share over all prompts.") from None
    if value != value or abs(value) == float("inf"):
        raise NotYet(when_nan)
    return value


@checker("31.3")
def check_patched_stream(attempt: Attempt) -> str:
    for seed, prompts, count, d, positions in (
        (0, 3, 5, 4, [1, 4, 0]),
        (1, 5, 5, 5, [2, 2, 3, 0, 4]),
        (2, 2, 7, 3, [6, 3]),
        (3, 1, 4, 2, [2]),
    ):
        base, source = random(prompts, count, d, seed=seed), random(prompts, count, d, seed=seed + 9)
        given = torch.tensor(positions)
        own = torch.arange(count)[None] == given[:, None]
        mixed = lambda where, base=base, source=source: torch.where(where[..., None], source, base)
        expected = mixed(own)
        found = attempt.tensor(base, source, given, shape=(prompts, count, d), axes="prompt, pos, d_model")
        every = lambda chosen, n=prompts, k=count: torch.isin(torch.arange(k), chosen).expand(n, -1)
        row = torch.arange(prompts)[:, None]
        place = torch.arange(count)[None]
        first = source[0, positions[0]].expand_as(base)
        likes = {
            "Nothing is changed. Do you return the changed copy?": base,
            "That is source. Only one vector of each prompt comes from it.": source,
            "It is the wrong way round: the rest must come from base, and one vector from source.": mixed(~own),
            "All the positions are patched in every prompt. Prompt n gets positions[n] only.": mixed(every(given)),
            "Every prompt got the first prompt's position. Each has its own.": mixed(every(given[:1])),
            "Every prompt got the last prompt's position. Each has its own.": mixed(every(given[-1:])),
            "Only the first prompt is patched.": mixed(own & (row == 0)),
            "Only the last prompt is patched.": mixed(own & (row == prompts - 1)),
            "Everything from the position on is patched. Patch the one vector there.": mixed(place >= given[:, None]),
            "Everything up to the position is patched. Patch the one vector there.": mixed(place <= given[:, None]),
            "One position too late.": mixed(own.roll(1, 1)),
            "One position too early.": mixed(own.roll(-1, 1)),
            "The source's vector is added to base's. Put it in its place.": base + own[..., None] * source,
            "The vector is set to zero. Take it from source.": base * ~own[..., None],
            "All prompts got the vector of the first prompt of source.": torch.where(own[..., None], first, base),
        }  # fmt: skip
        is_like(found, {why: like for why, like in likes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "One vector of each prompt, at its own place, and the input is left as it was."


@checker("31.4")
def check_output_with_values(attempt: Attempt) -> str:
    for seed, heads, kv, count, d in (
        (0, 9, 3, 5, 4),
        (1, 4, 2, 6, 3),
        (2, 6, 6, 4, 5),
        (3, 8, 1, 5, 5),
        (4, 8, 4, 3, 2),
    ):
        pattern = (3 * random(heads, count, count, seed=seed)).masked_fill(
            torch.ones(count, count, dtype=torch.bool).triu(1), float("-inf")
        ).softmax(-1)  # fmt: skip
        values = random(count, kv, d, seed=seed + 9)
        group = heads // kv
        found = torch.stack(
            [
                attempt.tensor(pattern, values, head, shape=(count, d), axes="query, d_head")
                for head in range(heads)
            ]
        )
        own, number = torch.arange(heads), torch.arange(heads) // group
        read = lambda which, rows=pattern, values=values: rows @ values.transpose(0, 1)[which]
        expected = read(number)
        wide = values.transpose(0, 1)
        likes = {
            "You took the remainder: heads 0, 3, 6 would share. Neighbours share a value head: a whole-number division.": read(own % kv),
            "The pattern is turned: for each query, add up over the keys.": read(number, pattern.mT),
            "That is not this head's pattern, but the one that bears the value head's number.": read(number, pattern[number]),
            "That is always value head 0. Which one does this query head read?": read(own * 0),
            "That is always the last value head. Which one does this query head read?": read(own * 0 + kv - 1),
            "The number of the query head is no number of a value head: several share one.": read(own.clamp(max=kv - 1)),
            "The value heads are in the reverse order.": read(kv - 1 - number),
            "You averaged over the value heads. The head reads one of them.": pattern @ wide.mean(0),
            "You added up the value heads. The head reads one of them.": pattern @ wide.sum(0),
            "You took the mean of the heads' patterns. This head keeps its own.": read(number, pattern.mean(0)),
            "These are the values themselves, without the pattern.": wide[number],
            "You divided by the number of value heads. Divide by how many query heads share one.": read((own // kv).clamp(max=kv - 1)),
            f"Do always three query heads share a value head? Here are {heads} and {kv}: read it off the shapes.": read((own // 3).clamp(max=kv - 1)),
        }  # fmt: skip
        is_like(found, {why: like for why, like in likes.items() if not close(like, expected)})
        if not close(found, expected):
            where = only_wrong(found, expected)
            raise NotYet(f"With {heads} query heads and {kv} value heads (head, query, coordinate): {where}")
    return "Right for nine heads on three, for two on one, for one on one, and where all share a single value head."


@checker("31.5")
def check_noise(attempt: Attempt) -> str:
    for seed, count, d, subject, level, samples, spread in (
        (0, 6, 40, [1, 3], 3.0, 50, 0.13),
        (1, 4, 64, [3], 1.5, 80, 2.0),
        (2, 7, 32, [2, 3, 4], 0.5, 60, 0.5),
    ):
        embeddings = random(count, d, seed=seed) + 1
        W_E = spread * random(200, d, seed=seed + 9) * torch.linspace(0.2, 1.8, d) + 0.3
        W_E *= torch.linspace(0.2, 1.8, 200)[:, None]  # some rows are longer than others, as in a model
        run = lambda draw, level=level, samples=samples, embeddings=embeddings, subject=subject, W_E=W_E: (
            attempt.tensor(
                embeddings, list(subject), W_E, level, samples, seeded(draw),
                shape=(samples, *embeddings.shape), axes="sample, pos, d_model",
            )
        )  # fmt: skip
        found = run(seed)
        added = found - embeddings
        rest = [p for p in range(count) if p not in subject]
        sd, wanted = W_E.std().item(), level * W_E.std().item()
        if close(found[:, rest], 0 * added[:, rest]):
            raise NotYet("That is the noise alone. Add it to copies of the embeddings.")
        if added[:, rest].abs().max() > 1e-5:
            raise NotYet("There is noise outside the subject. Every other position must stay as it is.")
        noise = added[:, subject]
        if noise.abs().max() < 1e-6:
            raise NotYet("There is no noise at all. Is the changed copy returned?")
        if noise.abs().amax((0, 2)).min() < 1e-6:
            raise NotYet("Some of the subject's tokens have no noise. All of them are corrupted.")
        if noise.abs().amax((1, 2)).min() < 1e-6:
            raise NotYet("One of the copies is clean. All of them are corrupted.")
        if close(noise, noise[:1].expand_as(noise)):
            raise NotYet(
                "All copies have the same noise. Each sample is a new draw, or the average over samples averages nothing."
            )
        if len(subject) > 1 and close(noise, noise[:, :1].expand_as(noise)):
            raise NotYet("All tokens of the subject get the same noise. Each has its own draw.")
        if close(noise, noise[..., :1].expand_as(noise)):
            raise NotYet("All coordinates of a token get the same number. Each coordinate has its own draw.")
        if (noise.mean(0) + embeddings[subject]).norm() < 0.5 * embeddings[subject].norm():
            raise NotYet("The noise stands in the place of the embeddings. It is added to them.")
        if noise[-9:].std() > 2 * noise[:9].std():
            raise NotYet("The noise grows from copy to copy: each begins with the clean prompt.")
        if noise.mean().abs() > 5 * wanted / noise.numel() ** 0.5:
            raise NotYet(
                f"The noise has mean {noise.mean():.3f}; it must be 0. `torch.randn`, not `torch.rand`?"
            )
        _size(noise, embeddings[subject], W_E, level, sd, wanted)
        if torch.corrcoef(torch.stack([noise.std((0, 1)), W_E.std(0)]))[0, 1] > 0.8:
            raise NotYet(
                "Each coordinate has a strength of its own. One standard deviation, of all entries of W_E."
            )
        tails = (noise.abs() > 2 * wanted).float().mean().item()
        if not 0.03 < tails < 0.06:
            raise NotYet(
                f"The noise is not normally distributed: {tails:.1%} of it lies beyond two standard deviations, and 4.6% should. `torch.randn`."
            )
        flat = noise.flatten(1)
        between = torch.corrcoef(flat) - torch.eye(samples)
        if between.abs().max() > 0.9 or torch.corrcoef(flat.T).triu(1).abs().max() > 0.9:
            raise NotYet(
                "Some of the draws are copies of others. One draw for each sample, token and coordinate."
            )
        again, other = run(seed), run(seed + 1)
        if not torch.equal(found, again) or close(found, other):
            raise NotYet(
                "The same generator must give the same noise, and another one another: draw with `generator=generator`."
            )
        if not close(run(1, 0.0, 3), embeddings.expand(3, -1, -1)):
            raise NotYet("With level 0 every copy must be the clean prompt.")
    return "On the subject only, new for each copy, normal, as strong as it should be, three times."


def _size(noise: Tensor, clean: Tensor, W_E: Tensor, level: float, sd: float, wanted: float) -> None:
    """Name the likely reason for noise of the wrong strength."""
    strength = noise.std().item()
    near = lambda value, within=0.05: abs(strength - value) < within * value
    if near(wanted):
        return
    options = {
        "`level` counts standard deviations of W_E: multiply by `W_E.std()`.": level,
        "Where is `level`? The noise has one standard deviation of W_E.": sd,
        "That is the variance. Multiply by the standard deviation.": level * sd**2,
        "You divided by the standard deviation of W_E. Multiply.": level / sd,
        "That is the standard deviation of this prompt's embeddings, not of W_E.": level * clean.std().item(),
        "You scaled with the mean length of the embeddings, not with the standard deviation of their entries.": level
        * W_E.norm(dim=1).mean().item(),
    }
    for why, value in options.items():
        if near(value):
            raise NotYet(why)
    raise NotYet(
        f"The noise has standard deviation {strength:.3f}; level × the standard deviation of W_E is {wanted:.3f}."
    )
