"""Checks of notebook 21, logit lens and tuned lens."""

from itertools import pairwise
from statistics import mode

import torch

from mechlab.discovery.tuned_lens import AffineLens
from mechlab.loading.models import tiny
from mechlab.metrics import logit_difference
from mechlab.reference import data_dir
from mechlab.runs.engines import run_of
from mechlab.runs.run import Put
from mechlab_course.checking import (
    close,
    declare,
    must_equal_in_all,
    number,
    only_wrong,
    random,
    refuse,
    whole_number,
)
from mechlab_course.exercises import Attempt, NotYet, checker, find_checker


def _streams(layers: int, d: int, seed: int):
    """One stream a layer, longer and longer, with a mean that is not zero."""
    return random(layers, d, seed=seed) * torch.arange(1, layers + 1)[:, None] * 3 + 0.5


@declare("21.1", axes="layer, d_vocab", tolerance=1e-3)
class LensLogits:
    cases = ((_streams(4, 6, 0), random(6, 10, seed=10)), (_streams(3, 8, 1), random(8, 5, seed=11)))

    def right(streams, W_U):
        return streams / streams.pow(2).mean(-1, keepdim=True).sqrt() @ W_U

    def no_norm(streams, W_U):
        """The norm is missing: divide each stream by its root mean square."""
        return streams @ W_U

    def last_scale(streams, W_U):
        """You divide all by the scale of the last stream. Each stream gets its own."""
        return streams / streams[-1].pow(2).mean().sqrt() @ W_U

    def length(streams, W_U):
        """You divide by its length, the root of the sum of squares. It is the root of their mean."""
        return streams / streams.norm(dim=-1, keepdim=True) @ W_U

    def over_layers(streams, W_U):
        """Your mean runs over the layers. It runs over the coordinates of one stream."""
        return streams / streams.pow(2).mean(0, keepdim=True).sqrt() @ W_U

    def one_for_all(streams, W_U):
        """You divide by one root mean square, over all streams. Each has its own."""
        return streams / streams.pow(2).mean().sqrt() @ W_U

    def mean_of_sizes(streams, W_U):
        """You divide by the mean of the sizes. It is the root of the mean of the squares."""
        return streams / streams.abs().mean(-1, keepdim=True) @ W_U

    def norm_of_the_logits(streams, W_U):
        """You divide the logits by their root mean square. Divide the streams by theirs, before W_U."""
        return LensLogits.right(streams @ W_U, torch.eye(W_U.shape[1]))

    def probabilities(streams, W_U):
        """These are probabilities. The logits are wanted: no softmax."""
        return LensLogits.right(streams, W_U).softmax(-1)

    def multiplied(streams, W_U):
        """You multiply by the root mean square. Divide by it."""
        return streams * streams.pow(2).mean(-1, keepdim=True).sqrt() @ W_U

    def no_root(streams, W_U):
        """You divide by the mean of the squares. Take its root."""
        return streams / streams.pow(2).mean(-1, keepdim=True) @ W_U

    def standard_deviation(streams, W_U):
        """You divide by the standard deviation. An RMS norm does not take the mean away."""
        return streams / streams.std(-1, keepdim=True) @ W_U

    def deviation_of_all(streams, W_U):
        """You divide by the standard deviation, around the mean. An RMS norm does not take the mean away."""
        return streams / streams.std(-1, keepdim=True, unbiased=False) @ W_U

    def largest(streams, W_U):
        """You divide by the largest coordinate. It is the root of the mean of the squares."""
        return streams / streams.abs().max(-1, keepdim=True).values @ W_U

    def layer_norm(streams, W_U):
        """You take the mean away, as LayerNorm does. An RMS norm only divides."""
        return LensLogits.right(streams - streams.mean(-1, keepdim=True), W_U)

    def log_probs(streams, W_U):
        """These are probabilities or log-probabilities. The logits are wanted."""
        return LensLogits.right(streams, W_U).log_softmax(-1)

    def further(attempt):
        model = tiny("gqa")
        logits, cache = model.run_with_cache(torch.arange(1, 8)[None])
        streams, logits = cache["resid_post", 2][0].detach(), logits[0].detach()
        found = attempt.tensor(streams, model.W_U.detach(), shape=logits.shape, axes="layer, d_vocab")
        refuse(not close(found, logits, 1e-2), "On a model's last stream your logits are not the model's.")
        return "On a model's last stream these are the model's own logits."


def _leading(layers: int, vocab: int, answer: int, seed: int):
    """Logits of each layer, with the answer in front at layer 0."""
    logits = random(layers, vocab, seed=seed)
    logits[0, answer] = 9.0
    return logits, answer


@declare("21.2", axes="layer", whole=True)
class Ranks:
    cases = (_leading(5, 12, 3, 0), _leading(4, 30, 29, 1), _leading(3, 7, 0, 2))

    def right(logits, answer):
        return (logits > logits[:, answer, None]).sum(-1)

    def from_one(logits, answer):
        """You count the answer itself. Its rank starts at 0."""
        return (logits >= logits[:, answer, None]).sum(-1)

    def from_below(logits, answer):
        """That is the place from below, smallest first. Count the larger ones."""
        return (logits < logits[:, answer, None]).sum(-1)

    def argsort(logits, answer):
        """`argsort` gives tokens, not ranks: its entry at `answer` is some token's id."""
        return logits.argsort(-1, descending=True)[:, answer]

    def first_or_not(logits, answer):
        """You say whether the answer leads. Count how many tokens are ahead of it."""
        return (logits.argmax(-1) == answer).long()

    def first_layer(logits, answer):
        """You compare with the answer's logit of the first layer. Each layer has its own."""
        return (logits > logits[0, answer]).sum(-1)

    def one_layer(logits, answer):
        """You compare with the answer's logit of one layer. Each layer has its own."""
        return (logits > logits[-1, answer]).sum(-1)

    def further(attempt):
        same = attempt.tensor(torch.zeros(2, 6), 2, shape=(2,), axes="layer", whole=True)
        refuse(same.any(), "When all logits are equal none is larger, so the rank is 0.")
        return "0 where the answer leads, and right on four sets of logits."


def _two_logits(pos: int, vocab: int, seed: int, size: float):
    return size * random(pos, vocab, seed=seed), size * random(pos, vocab, seed=seed + 10)


def _logs(a, b):
    """Both log-probabilities, and the first probabilities."""
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return p, q, p.exp()


@declare("21.3", axes="pos")
class KL:
    cases = (_two_logits(4, 9, 0, 2), _two_logits(3, 20, 1, 2), _two_logits(5, 12, 2, 20))

    def right(a, b):
        p, q, weights = _logs(a, b)
        return (weights * (p - q)).sum(-1)

    def otherwise(found, a, b):
        large = a.abs().max() > 10
        hint = " Stay with `log_softmax`: a probability can be too small for a logarithm." if large else ""
        return only_wrong(found, KL.right(a, b)) + hint

    def turned_round(a, b):
        """That is the KL the other way round: the model's probabilities are the weights."""
        return KL.right(b, a)

    def sign(a, b):
        """Look at the sign: the model's logarithm minus the lens'. A KL is never negative."""
        return -KL.right(a, b)

    def logits(a, b):
        """Logits are not log-probabilities: take `log_softmax` of both first."""
        return (a.softmax(-1) * (a - b)).sum(-1)

    def mean(a, b):
        """You took the mean over the vocabulary. Add up."""
        return KL.right(a, b) / a.shape[-1]

    def lens_as_weights(a, b):
        """The weights are the lens' probabilities. They belong to the model."""
        p, q, _ = _logs(a, b)
        return (q.exp() * (p - q)).sum(-1)

    def over_positions(a, b):
        """The softmax runs over the positions. It runs over the vocabulary: `log_softmax(-1)`."""
        p, q = a.log_softmax(0), b.log_softmax(0)
        return (p.exp() * (p - q)).sum(-1)

    def ratio(a, b):
        """You multiply with p / q. Its logarithm is wanted: log p − log q."""
        p, q, weights = _logs(a, b)
        return (weights * (p - q).exp()).sum(-1)

    def squares(a, b):
        """These are squared differences. KL has p · (log p − log q), with its sign."""
        p, q, _ = _logs(a, b)
        return (p - q).pow(2).sum(-1)

    def sizes(a, b):
        """You took the size of each difference. Some terms are negative: keep their signs."""
        p, q, weights = _logs(a, b)
        return (weights * (p - q).abs()).sum(-1)

    def both_ways(a, b):
        """That is the mean of both directions. Only KL(model ‖ lens) is wanted."""
        return (KL.right(a, b) + KL.right(b, a)) / 2

    def probabilities_subtracted(a, b):
        """You subtract probabilities. Their logarithms are subtracted: log p − log q."""
        return (a.softmax(-1) * (a.softmax(-1) - b.softmax(-1))).sum(-1)

    def log_weights(a, b):
        """Your weights are log-probabilities. The probabilities themselves are the weights: `.exp()`."""
        p, q, _ = _logs(a, b)
        return (p * (p - q)).sum(-1)

    def top_token(a, b):
        """That is one token's difference, the model's likeliest. The sum runs over all tokens."""
        p, q, weights = _logs(a, b)
        return (p - q).gather(-1, weights.argmax(-1, keepdim=True))[:, 0]

    def entropy(a, b):
        """That is the model's own entropy. What the lens says must come in: log p − log q."""
        p, _, weights = _logs(a, b)
        return -(weights * p).sum(-1)

    def no_weights(a, b):
        """You left out the weights. Multiply with the model's probabilities."""
        p, q, _ = _logs(a, b)
        return (p - q).sum(-1)

    def cross_entropy(a, b):
        """That is the cross-entropy. Take the model's own entropy off: p − q, not −q."""
        _, q, weights = _logs(a, b)
        return -(weights * q).sum(-1)

    def bits(a, b):
        """These are bits. Nats are wanted: the natural logarithm."""
        return KL.right(a, b) / torch.tensor(2.0).log()

    def further(attempt):
        for a, b in KL.cases:
            shape = a.shape[:1]
            shifted = attempt.tensor(a + 5, b - 3, shape=shape, axes="pos")
            why = "A constant added to all logits of one side changes no probability and must change nothing."
            refuse(not close(shifted, KL.right(a, b), 1e-3), why)
            same = attempt.tensor(a, a + 1, shape=shape, axes="pos")
            refuse(not close(same, torch.zeros(shape)), "Between equal distributions KL is 0.")
        return (
            "0 between equal distributions, positive otherwise, and blind to a constant added to all logits."
        )


declared_kl = find_checker("21.3")


@checker("21.3")
def check_kl(attempt: Attempt) -> str:
    why = "You added up or averaged over the positions. Keep one number for each."
    found = attempt(*KL.cases[0])
    refuse(isinstance(found, torch.Tensor) and found.ndim == 0, why)
    return declared_kl(attempt)


def _fit(x, y):
    """The matrix and the bias of the least squares."""
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    return solved[:-1], solved[-1]


def _matrix_and_bias(found, d: int):
    """What the learner returned, if it is a matrix and a bias of the right shapes; else `NotYet`."""
    tensors = isinstance(found, (tuple, list)) and [isinstance(part, torch.Tensor) for part in found]
    refuse(tensors != [True, True], "Return two tensors: the matrix and the bias.")
    matrix, bias = (part.detach().float() for part in found)
    shapes = f"The shapes are {tuple(matrix.shape)} and {tuple(bias.shape)}"
    refuse(matrix.shape != (d, d) or bias.shape != (d,), f"{shapes}; they should be {(d, d)} and {(d,)}.")
    finite = torch.isfinite(matrix).all() and torch.isfinite(bias).all()
    refuse(not finite, "There are NaN or infinite values in the matrix or the bias.")
    return matrix, bias


def _fit_mistakes(x, y, matrix, bias) -> dict:
    """What is said of a fit, and whether it is so."""
    right, offset = _fit(x, y)
    same, alone = close(matrix, right, 1e-3), close(matrix, torch.linalg.lstsq(x, y).solution, 1e-3)
    own_bias = close(bias, y.mean(0) - x.mean(0) @ matrix, 1e-3)
    nearly = close(matrix, right, 0.1) and own_bias and not (same and close(bias, offset, 1e-3))
    no_bias, bias_off = alone and not bias.any(), same and not close(bias, offset, 2e-3)
    rest = y - x @ matrix - bias
    off = rest.pow(2).mean() / (y - x @ right - offset).pow(2).mean()
    along = max(rest.mean(0).abs().max(), (x.T @ rest / len(x)).abs().max())
    return {
        "There is no bias. Streams of different layers have different means: let the fit have one.": no_bias,
        "Matrix and bias must be fitted together: "
        "you fitted the matrix without a bias, and added one afterwards.": alone,
        "This map leads from y to x. It must lead from x to y.": close(matrix, _fit(y, x)[0], 1e-3),
        "The ones stand in front of x, so the first row of the solution is the bias, not the last.": close(
            torch.cat([matrix[:1], bias[None]]), torch.stack([offset, right[-1]]), 1e-3
        ),
        "You fitted y − x. Here the map is xA + b, so A holds the added x too.": close(
            matrix, right - torch.eye(len(right)), 1e-3
        ),
        "Your matrix has only a diagonal. Each coordinate of y may depend on all of x.": bool(
            matrix.any() and not (matrix - matrix.diag().diag()).any()
        ),
        "The matrix is transposed: x @ A must be like y.": close(matrix, right.T, 1e-3),
        "Nearly: is there a penalty in your fit, or did it stop before the end?": nearly,
        "The matrix is right, the bias is not: b = mean(y) − mean(x) @ A.": bias_off,
        f"Your mean squared error is {off:.4f} times the smallest possible.": not close(matrix, right, 2e-3),
        "What is left over still goes along with x: the fit can be improved.": along > 1e-2,
    }


@checker("21.4")
def check_fit(attempt: Attempt) -> str:
    for tokens, d, seed in ((60, 4, 0), (100, 7, 1)):
        x = random(tokens, d, seed=seed) + 2 * random(d, seed=seed + 1)
        A, b = random(d, d, seed=seed + 2), random(d, seed=seed + 3)
        y = x @ A + b + 0.3 * random(tokens, d, seed=seed + 4)
        matrix, bias = _matrix_and_bias(attempt(x, y), d)
        for why, wrong in _fit_mistakes(x, y, matrix, bias).items():
            refuse(wrong, why)
    return "What is left over has mean 0 and goes along with no coordinate of x, on two sets."


@checker("21.5")
def check_depth(attempt: Attempt) -> str:
    answers = []
    for tops, expected in (
        ([7, 3, 3, 3, 3, 3, 3, 7, 7, 7], 7),
        ([7, 3, 2, 1, 3, 7, 7], 5),
        ([1, 1, 2, 2, 1, 9, 9, 9], 5),
        ([4, 4, 4], 0),
        ([8, 6], 1),
        ([5], 0),
        ([2, 9, 2, 2, 2, 3, 2], 6),
    ):
        try:
            found = whole_number(attempt(torch.tensor(tops)), "the layer")
        except NotYet:
            must_equal_in_all(answers)  # an earlier answer tells more than the error
            raise
        begins = "Wanted is where the last unbroken run begins."
        changes, same = sum(a != b for a, b in pairwise(tops)), tops.count(tops[-1])
        told = {
            "It changes again after that layer. From the answer on it must stay the same.": tops.index(
                tops[-1]
            ),
            f"That is how often it changes. {begins}": changes,
            "That layer still says something else. The answer is the next one.": max(expected - 1, 0),
            "Where nothing ever changes, the answer is 0: it is settled from the first layer.": (
                expected or found
            ),
            f"That is where the token stands that is said most often. {begins}": tops.index(mode(tops)),
            f"That counts the layers that say the same. {begins}": same,
            "That is where the largest id stands. Ids are names of tokens, not sizes.": tops.index(max(tops)),
            f"That is how many layers say something else. {begins}": len(tops) - same,
            f"That is where two layers in a row agree for the first time. {begins}": next(
                (n for n, pair in enumerate(pairwise(tops)) if pair[0] == pair[1]), len(tops) - 1
            ),
            "That is how many layers say the same at the end. Wanted is where they begin.": len(tops)
            - expected,
        }
        one, each = torch.tensor, f"With {tops} it is {expected}, where the last unbroken run begins; "
        told = {why: one(float(layer)) for why, layer in told.items()}
        answers.append((one(float(found)), one(float(expected)), told, f"{each}you return {found}."))
    must_equal_in_all(answers)
    return "The layer where the last unbroken run begins, seven times."


CAPITALS = """France Paris, Germany Berlin, Italy Rome, Japan Tokyo, Russia Moscow, England London
Greece Athens, China Beijing, Cuba Havana, Ireland Dublin, Austria Vienna, Poland Warsaw, Iran Tehran
Portugal Lisbon, Norway Oslo, Sweden Stockholm, Finland Helsinki, Peru Lima, Kenya Nairobi, Canada Ottawa
Hungary Budapest, Denmark Copenhagen"""


def _lens(own: float, liking: float, shift: int = 0, noise: float = 0.2):
    """Readings for 12 prompts: each own answer (or a later one) by `own`, all by `liking`."""
    answers = torch.randperm(60, generator=torch.Generator().manual_seed(3))[:12]
    logits = noise * random(12, 60, seed=4)
    logits[:, answers] += liking + 2 * random(12, seed=5)  # some answers are liked more than others
    logits[range(12), answers.roll(-shift)] += own
    return logits, answers


@checker("21.6")
def check_owed(attempt: Attempt, model) -> str:
    said = lambda *lens: number(attempt(*lens), "one number of nats")
    for liking in (0.0, 8.0):
        logits, answers = _lens(0, liking, noise=0.0)
        found = said(logits, answers)
        why = f"One lens says the same whatever the prompt and owes it nothing. Yours says {found:.2f} nats,"
        refuse(abs(found) > 0.05, f"{why} not 0. What does each answer get at other prompts?")
    logits, answers = _lens(4, 2)
    rows = 3 * random(12, 1, seed=6)
    moved = abs(said(logits + rows, answers) - said(logits, answers)) > 1e-2
    refuse(moved, "A constant added to all logits of one prompt changes no probability, but changes yours.")
    little, much = said(*_lens(2, 2)), said(*_lens(6, 2))
    why = "A lens that prefers each prompt's own answer by 6 logits"
    share = " A difference of probabilities, or a share, is no number of nats: take logarithms."
    refuse(much < 0.8, f"{why} gets {much:.2f} nats from you.{share if much > 0 else ''}")
    refuse(much < little + 0.5, f"{why} is surer than one with 2; yours says {much:.2f} and {little:.2f}.")
    wrong = said(*_lens(6, 2, shift=1))
    why = "One lens prefers the answers of other prompts to the own one, which should count below 0;"
    refuse(wrong > 0, f"{why} yours says {wrong:.2f}.")
    return "Right on six lenses. " + _on_capitals(said, model)


def _affine() -> AffineLens:
    return AffineLens.load(data_dir() / "lens" / "smollm2.safetensors")


def _on_capitals(said, model) -> str:
    """What the learner's number says of the affine lens on 22 capitals, at three layers."""
    lens = _affine()
    facts = [fact.split() for fact in CAPITALS.replace("\n", ",").split(",")]
    tokens = model.to_tokens([f"The capital of {country} is" for country, _ in facts])
    answers = torch.tensor([model.to_single_token(f" {city}") for _, city in facts])
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("resid_pre"))
    found = []
    for layer in (12, 23, 26):
        carried = lens(cache["resid_pre", layer][:, -1], layer)
        found.append(said(LensLogits.right(carried, model.W_U.detach()).detach(), answers))
    told = ", ".join(f"{each:.1f}" for each in found)
    why = f"On entering layers 12, 23 and 26 it finds {told} for the capitals"
    refuse(found[2] < 5 * abs(found[0]) + 0.5, f"{why}: the last should be far above the first.")
    return f"On entering layers 12, 23 and 26 the affine lens owes {told} nats to the country asked for."


def _find(found, model):
    """What the learner returned for 21.7, as two prompts, two ids and a layer; else `NotYet`."""
    whole = (
        isinstance(found, (tuple, list)) and len(found) == 5 and all(isinstance(x, str) for x in found[:4])
    )
    refuse(not whole, "Return five things: two prompts, two words (texts), and a layer (an int).")
    layer = whole_number(found[4], "the layer as the last of five")
    last = model.cfg.n_layers - 1
    refuse(not 0 <= layer <= last, f"Layer {layer} is not there: this model has the layers 0 to {last}.")
    prompts = [model.to_tokens(text) for text in found[:2]]
    ids = [model.to_tokens(word, prepend_bos=False)[0].tolist() for word in found[2:4]]
    for word, pieces in zip(found[2:4], ids, strict=True):
        why = "Take words of one token, most with a space in front."
        refuse(len(pieces) != 1, f"{word!r} is {len(pieces)} tokens for this model. {why}")
    same = ids[0] == ids[1] or found[0] == found[1]
    refuse(same, "Two different prompts and two different words are needed.")
    shown = any("capital of" in text or "gave a drink" in text for text in found[:2])
    refuse(shown, "That is the notebook's own example. Find one that it does not show.")
    refuse(max(len(each[0]) for each in prompts) > 60, "Keep the prompts below 60 tokens.")
    ends = (
        "The prompts end with different tokens, and the lens may read no more than that. Let both end alike."
    )
    refuse(prompts[0][0, -1] != prompts[1][0, -1] or min(len(each[0]) for each in prompts) < 3, ends)
    return prompts, [pieces[0] for pieces in ids], layer


@checker("21.7")
def check_unused(attempt: Attempt, model) -> str:
    prompts, (word, other), layer = _find(attempt(), model)
    W_U, lens, metric = model.W_U.detach(), _affine(), logit_difference(word, other)
    contrast = W_U[:, word] - W_U[:, other]
    direction = contrast + lens.weight[layer] @ contrast if layer < len(lens.bias) else contrast
    direction = direction / direction.norm()
    runs = [run_of(model, each) for each in prompts]
    streams = [run.at("resid_pre", layer)[0, -1] for run in runs]
    said = [float(run.value(metric)[0]) for run in runs]
    read = [float(LensLogits.right(lens(each, layer)[None], contrast[:, None])) for each in streams]
    told = (
        f"the output tells them apart by {said[0] - said[1]:.1f} logits, the lens by {read[0] - read[1]:.1f}"
    )
    why = "The output should differ by 3 or more, the first prompt towards the first word."
    refuse(said[0] - said[1] < 3, f"Here {told}. {why}")
    refuse(read[0] - read[1] < 2, f"Here {told}. The lens should read 2 or more, in the same direction.")
    shares = []
    for here, there in ((0, 1), (1, 0)):
        change = ((streams[there] - streams[here]) @ direction) * direction
        last = torch.arange(prompts[here].shape[1]) == prompts[here].shape[1] - 1
        put = Put("resid_pre", layer, (streams[here] + change)[None, None, None], last[None, None])
        after = float(runs[here].edited(metric, [put])[0, 0])
        shares.append((after - said[here]) / (said[there] - said[here]))
    moved = f"swapping it moves the output {shares[0]:.2f} and {shares[1]:.2f} of the way"
    refuse(
        max(map(abs, shares)) > 0.1, f"It can be read ({told}), but {moved}: it is used, or read directly."
    )
    return f"Readable and not used: {told}; {moved}."
