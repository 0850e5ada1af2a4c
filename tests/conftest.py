"""Shared fixtures: tiny models for every unit test, the real model for tests marked `model`."""

import pytest

import mechlab as ml


@pytest.fixture(scope="session", params=["gqa", "gpt2"])
def tiny(request):
    return ml.tiny(request.param)


@pytest.fixture(scope="session")
def gqa():
    return ml.tiny("gqa")


@pytest.fixture(scope="session")
def smollm2():
    return ml.load(quiet=True)
