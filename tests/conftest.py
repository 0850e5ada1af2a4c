"""Shared fixtures: tiny models for every unit test, the real model for tests marked `model`."""

import re
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
# In tests the shapes written in the signatures are checked at every call, in every module; learners do not pay for it.
UNCHECKED = ("course", "sweeps")  # what is handed on; what is told with a sentence of its own
FILES = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "mechlab").rglob("[a-z]*.py"))]
install_import_hook(
    [".".join(path.parts) for path in FILES if path.name not in UNCHECKED], "beartype.beartype"
)

import mechlab as ml  # noqa: E402


@pytest.fixture(scope="session", params=["gqa", "gpt2"])
def tiny(request):
    return ml.tiny(request.param)


@pytest.fixture(scope="session")
def gqa():
    return ml.tiny("gqa")


@pytest.fixture(scope="session")
def smollm2():
    return ml.load(quiet=True)


@pytest.fixture(params=["gqa", "gpt2"])
def folder(request, tmp_path):
    """A small local folder in Hugging Face format, as `save_pretrained` writes it."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    size = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = (
        GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, **size)
        if request.param == "gpt2"
        else LlamaConfig(
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            hidden_size=16,
            intermediate_size=32,
            **size,
        )
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    path = tmp_path / "my-model"
    model.save_pretrained(path)
    ml.models._tiny_tokenizer().save_pretrained(path)
    return path, model


def pytest_xdist_make_scheduler(config, log):
    """Two workers (`--dist loadgroup`): file by file; exercises by notebook; in the browser one by one, if it can be."""
    from xdist.scheduler import LoadScopeScheduling

    class Dealt(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if file.endswith("test_browser.py"):  # those without parameters belong together, in their order
                return nodeid if test.endswith("]") else file
            of = re.search(r"\[(\d\d)[._]", test) if file.endswith("test_exercises.py") else None
            return file + (of[1] if of else "")

    return Dealt(config, log) if config.getoption("dist") == "loadgroup" else None
