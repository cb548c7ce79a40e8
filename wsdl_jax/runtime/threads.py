"""Work that threads do ahead of its use, such as reading image files."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Bounded:
    """Lets threads work at once as long as their work together is not larger than a bound."""

    def __init__(self, bound: int):
        """Begins without work. bound: how much may be worked on at once, in any unit."""
        self._bound, self._free = bound, bound
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def work(self, size: int) -> Iterator[None]:
        """Waits until there is room for a piece of work, and keeps that room until its end.

        size: of the work; what is larger than the bound is worked on alone.
        """
        size = min(size, self._bound)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 64
) -> Iterator[Result]:
    """Yields `function(item)` for every item, in order, computed in threads.

    Items are taken in the caller's thread. When the iterator is closed or fails, what has not begun
    is dropped, and what has is waited for. Whoever may leave it before its end closes it
    (`contextlib.closing`).

    Args:
      function: called in several threads at once. What it raises is raised in its item's turn.
      items: to be mapped.
      ahead: how many items are taken, at most, beyond the one whose result is asked for. So it
        bounds how many results are in memory. With 0, one item is worked on at a time.
    """
    with ThreadPoolExecutor() as pool:
        waiting = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
