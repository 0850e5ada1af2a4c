"""For nbval: after a failed cell the rest of that notebook is skipped, since it could only fail too."""

import pytest

_FAILED: dict[str, str] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if outcome.get_result().failed:
        _FAILED.setdefault(str(item.path), item.name)


def pytest_runtest_setup(item):
    if str(item.path) in _FAILED and item.path.suffix == ".ipynb":
        pytest.skip(f"{_FAILED[str(item.path)]} failed")
