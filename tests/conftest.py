"""What all tests share: one hypothesis profile, and threads as they were."""

from collections.abc import Iterator

import hypothesis
import pytest

import adagrad

# The same examples in every run. Compiling a kernel takes seconds, so no deadline.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=60, print_blob=False)
hypothesis.settings.load_profile("suite")


# Files whose tests take a minute and more together. They begin, so that no worker is left with one of them at the end.
LONG = ("test_docs", "test_keras_face", "test_triton")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files, not the tests in a file."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture
def threads() -> Iterator[None]:
    """For a test that sets the number of threads: afterwards it is as before."""
    before = adagrad.get_num_threads()
    yield
    adagrad.set_num_threads(before)
