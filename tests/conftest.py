"""What all tests share: one hypothesis profile, and threads as they were."""

import itertools
from collections.abc import Iterator

import hypothesis
import pytest

import adagrad

# The same examples in every run. Compiling a kernel takes seconds, so no deadline.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=60, print_blob=False)
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their file run in one worker, so that what it does is done once."""
    for item in items:
        definitions = itertools.chain.from_iterable(item._fixtureinfo.name2fixturedefs.values())
        if any(each.scope in ("module", "session") and each.baseid.endswith(".py") for each in definitions):
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture
def threads() -> Iterator[None]:
    """For a test that sets the number of threads: afterwards it is as before."""
    before = adagrad.get_num_threads()
    yield
    adagrad.set_num_threads(before)
