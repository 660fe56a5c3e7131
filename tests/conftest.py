"""What all tests share: one hypothesis profile, and threads as they were."""

from collections.abc import Iterator

import hypothesis
import pytest

import adagrad

# The same examples in every run. Compiling a kernel takes seconds, so no deadline.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=60, print_blob=False)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def threads() -> Iterator[None]:
    """For a test that sets the number of threads: afterwards it is as before."""
    before = adagrad.get_num_threads()
    yield
    adagrad.set_num_threads(before)
