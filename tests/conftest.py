"""Shared fixtures: tiny models for every unit test, the real model for tests marked `model`."""

import pytest
from jaxtyping import install_import_hook

# In tests the shapes written in the signatures are checked at every call; learners do not pay for it.
install_import_hook(["mechlab.metrics", "mechlab.forward", "mechlab.plots"], "beartype.beartype")

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
