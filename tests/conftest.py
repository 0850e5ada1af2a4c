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
    """For the browser (`--dist loadgroup`): tests without parameters file by file, in their order; others one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class FileByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.endswith("]") else nodeid.split("::")[0]

    return FileByFile(config, log) if config.getoption("dist") == "loadgroup" else None


def pytest_collection_modifyitems(items):
    """What runs on one worker (`--dist loadgroup`): a file; of the exercises, those of one notebook.

    Tests in the browser are dealt out one by one.
    """
    for item in items:
        if not (item.get_closest_marker("xdist_group") or item.get_closest_marker("browser")):
            number = re.search(r"\[(\d\d)[._]", item.nodeid) if item.path.stem == "test_exercises" else None
            item.add_marker(pytest.mark.xdist_group(item.path.stem + (f" {number[1]}" if number else "")))
