"""`python -m tests.fuzz MINUTES [WORD]`: everything in tests/test_fuzz.py with fresh numbers, as long as asked.

Each finding is printed with the smallest example that shows it. WORD: only tests with it in their name.
"""

import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial

from hypothesis import HealthCheck, Phase, seed, settings

from tests import test_fuzz

ROUND = settings(
    max_examples=10,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
    phases=[Phase.generate, Phase.shrink],
    print_blob=False,
)


def tests() -> dict[str, Callable]:
    """The tests of the file, one for each of their parameters, with settings of our own."""
    found = {}
    for name, test in vars(test_fuzz).items():
        if not hasattr(test, "hypothesis"):
            continue
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        for values in marks[0].args[1] if marks else [None]:
            given = {marks[0].args[0]: values} if marks else {}
            label = f"{name}[{getattr(values, '__name__', values)}]" if marks else name
            found[label] = partial(test, **given)
    return found


def once(test: Callable, number: int) -> str | None:
    """The smallest failing example of ten, with its traceback, or None."""
    inner = test.func if isinstance(test, partial) else test
    try:
        settings_before = inner._hypothesis_internal_use_settings
        inner._hypothesis_internal_use_settings = ROUND
        seed(number)(inner)
        test()
    except Exception as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        return f"{notes}\n{''.join(traceback.format_exception(error, limit=-3))}"
    finally:
        inner._hypothesis_internal_use_settings = settings_before
    return None


def main(minutes: float, word: str = "") -> int:
    """Rounds of ten examples of each test until the time is over."""
    end, number, found, done = time.monotonic() + 60 * minutes, random.randrange(10**9), Counter(), Counter()
    chosen = {name: test for name, test in tests().items() if word in name}
    spent: Counter[str] = Counter()
    while time.monotonic() < end:
        for name, test in chosen.items():
            started, number = time.monotonic(), number + 1
            said = once(test, number)
            done[name] += 1
            spent[name] += time.monotonic() - started
            if said:
                found[name] += 1
                print(f"\n=== {name}, seed {number}\n{said}", flush=True)
            if time.monotonic() > end:
                break
    for name in chosen:
        print(
            f"{name}: {10 * done[name]} examples in {spent[name]:.0f} s, {found[name]} findings", flush=True
        )
    return min(found.total(), 1)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), *sys.argv[2:3]))
