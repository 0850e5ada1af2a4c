"""What the type checker of the style stage is there for, with the project's own settings: a new version must still see it."""

import subprocess
import sys
import tomllib

import pytest

from tests.imports import ROOT

START = """
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from mechlab.loading import memory


def shaped(x: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, " pos"], k: int | None = None) -> Float[Tensor, "..."]:
    return x[..., tokens, :].sum(dim=(0, 1))


def on(model: TransformerBridge, text: str) -> Float[Tensor, "layer head"]:
    return model.to_tokens(text)[0].float()


"""
WRONG = {  # what somebody writes: what the checker says of it
    "import no_such_module": "import-not-found",
    "from mechlab.metrics import no_such_thing": "missing-module-member",
    "print(never_bound)": "unresolved-reference",
    "if torch.rand(()) > 0.5:\n    sometimes = 1\nprint(sometimes)": "possibly-unresolved-reference",
    "shaped(torch.ones(1))": "missing-argument",
    "shaped(torch.ones(1), torch.ones(1), 2, 3)": "too-many-positional-arguments",
    "shaped(torch.ones(1), torch.ones(1), top=2)": "unknown-argument",
    'shaped("text", torch.ones(1))': "invalid-argument-type",
    "memory.free_ram() + 1": "unsupported-operator",  # None on some systems
    "def f(text: str | None = None) -> str:\n    return text.upper()": "missing-union-attribute",
    "def f(unannotated):\n    return memory.free_rom()": "missing-attribute",
    "def f() -> int:\n    return None": "invalid-explicit-return",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the checker says of each piece of code, one run for all."""
    folder = tmp_path_factory.mktemp("typed")
    for number, code in enumerate(["", *WRONG]):
        (folder / f"case{number}.py").write_text(f"{START}{code}\n")
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ty"]["rules"]
    (folder / "ty.toml").write_text(
        "[rules]\n" + "".join(f'{name} = "{level}"\n' for name, level in rules.items())
    )
    command = [sys.executable, "-m", "ty", "check", "--python", sys.prefix, "--extra-search-path", str(ROOT)]
    done = subprocess.run(
        [*command, "--output-format", "concise"], cwd=folder, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def test_shapes_are_no_names_and_what_is_right_passes(said):
    assert not [line for line in said if "case0.py" in line]


@pytest.mark.parametrize("code", WRONG)
def test_a_mistake_is_seen(code, said):
    number = [*WRONG].index(code) + 1
    told = [line for line in said if f"case{number}.py" in line]
    assert len(told) == 1 and WRONG[code] in told[0], told
