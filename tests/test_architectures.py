"""Every public technique on every family of models, and the page that lists it, docs/models.md.

A technique is exact (its numbers are those of runs with hooks written by hand), served by the plain engine (the
same numbers, each patch a full run), or refused with a reason. `python -m tests.test_architectures` runs it all
and writes the page; the test runs it all and holds the page to it.
"""

import re
import sys
import warnings
from pathlib import Path

import pytest

from mechlab.loading.limits import limits_of
from mechlab.runs.matrices import is_parallel, norms_of
from mechlab.runs.run import norm_over_heads
from mechlab.tokens import first_tokens
from tests import families
from tests.architectures import FAMILIES, kept
from tests.test_hooks import hooks_left

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
Outcome = tuple[str, float | str]
HEAD = """# Models: what works on which

Every public technique was tried on every family of models that is listed here: small random models of each
architecture, opened by `ml.load` from a folder in Hugging Face format, with head sizes, rotary bases and windows
that are nobody's defaults. A number is the largest difference from the same experiment written by hand with hooks
of TransformerLens (or from another library, where that has it), as a share of the largest number found; below
3e-4 it counts as exact.

- `2e-07`: exact.
- `p 2e-07`: exact, by the plain engine: each patch is a full run of the model, which is slower.
- `no (1)`: refused; the reason stands below.

Made by `python -m tests.test_architectures` from a run; `tests/test_architectures.py` runs it again and holds the
page to it. A family that is not in the list works where TransformerLens boots it: the fast engine compares its
logits with the model's own before it is used, and the plain engine serves the rest.
"""


def outcomes(family: str) -> dict[str, Outcome]:
    """What came of each technique on a family."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*slower, the same numbers")
        return families.outcomes(kept(family))


def traits(family: str) -> list[str]:
    """What is special about a family, read off the model."""
    model, found = kept(family), []
    attn, norms = model.blocks[0].attn, norms_of(model, 0)
    inner = attn.original_component
    found += ["attention and MLP in parallel"] * is_parallel(model)
    found += ["norms after attention and MLP"] * (norms.after_attention is not None)
    found += ["no norm before them"] * (norms.before_attention is None)
    if getattr(attn, "q_norm", None) is not None:
        found.append(f"norms of queries and keys{' over all heads' * norm_over_heads(model, 0)}")
    found += ["capped attention scores"] * (getattr(inner, "attn_logit_softcapping", None) is not None)
    config = model.original_model.config
    found += ["capped logits"] * (getattr(config, "final_logit_softcapping", None) is not None)
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    found += ["sliding windows"] * (window is not None)
    kinds = {"standard": "learned", "rotary": "rotary", "alibi": "ALiBi"}
    found += [f"{kinds[str(model.cfg.positional_embedding_type)]} positions"]
    found += ["tokenizer adds no first token"] * (first_tokens(model) == 0)
    return found + limits_of(model)


def reasons(found: dict[str, dict[str, Outcome]]) -> list[str]:
    """The sentences of all refusals, each once, without what differs from layer to layer."""
    told = (str(each[1]) for of in found.values() for each in of.values() if each[0] == "refused")
    return list(dict.fromkeys(map(general, told)))


def general(sentence: float | str) -> str:
    return re.sub(r"layer \d+", "a layer", str(sentence))


def cell(outcome: Outcome, known: list[str]) -> str:
    kind, told = outcome
    if kind == "refused":
        return f"no ({known.index(general(told)) + 1})"
    number = f"{told:.0e}" if float(told) > 1e-9 else "0"
    return f"p {number}" if kind == "plain" else number


def page(found: dict[str, dict[str, Outcome]]) -> str:
    """docs/models.md."""
    known, lines = reasons(found), [HEAD]
    lines += ["## Families\n", "| family | what is special about it |", "|---|---|"]
    lines += [f"| {family} | {'; '.join(traits(family))} |" for family in found]
    lines += ["\n## Techniques\n", f"| technique | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for name in next(iter(found.values())):
        lines.append(f"| `{name}` | {' | '.join(cell(of[name], known) for of in found.values())} |")
    lines += ["\n## Reasons\n", *(f"{n}. {sentence}" for n, sentence in enumerate(known, 1))]
    return "\n".join(lines) + "\n"


FOUND: dict[str, dict[str, Outcome]] = {}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_technique_is_exact_or_refused(family):
    model = kept(family)
    before, left = model(families.TOKENS), hooks_left(model)
    found = FOUND[family] = outcomes(family)
    wrong = {
        name: off for name, (kind, off) in found.items() if kind != "refused" and not off < families.WITHIN
    }
    assert not wrong, wrong
    refused = {name for name, (kind, _) in found.items() if kind == "refused"}
    assert refused == families.REFUSED.get(family, set())
    assert {kind for kind, _ in found.values()} <= {
        "refused",
        "plain" if family == "Mixtral" else "exact",
        "exact",
    }
    assert (model(families.TOKENS) == before).all() and hooks_left(model) == left


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_what_was_found(family):
    """The family's column of docs/models.md; no cell of it is empty."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ")
        for line in text.split("## Techniques")[1].splitlines()
        if line[:1] == "|"
    ]
    column = rows[0].index(family)
    stated = {row[0].strip("`"): row[column] for row in rows[2:]}
    found = FOUND.get(family) or outcomes(family)
    kinds = {name: kind for name, (kind, _) in found.items()}
    said = {name: {"p": "plain", "n": "refused"}.get(each[:1], "exact") for name, each in stated.items()}
    assert said == kinds
    assert f"| {family} | {'; '.join(traits(family))} |" in text


if __name__ == "__main__":
    PAGE.write_text(page({family: outcomes(family) for family in FAMILIES}), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name} is written.\n")
