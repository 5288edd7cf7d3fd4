"""Every end-to-end test starts with nothing compiled, two threads and no gradients unless it asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.end_to_end.support import BACKEND, ENTRIES


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Forgets compiled code and reports before and after."""
    forget()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    forget()


def forget() -> None:
    """torch._dynamo.reset reaches the compiler when it is the backend; a direct call needs its own."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if BACKEND == "dlcompiler":
        import dlcompiler

        dlcompiler.reset()


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> str:
    """Both ways in."""
    return request.param
