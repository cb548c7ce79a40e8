"""A bound on the memory that images take which threads hold at one time."""

import contextlib
import threading
from collections.abc import Callable, Iterator


class PixelBudget:
    """The number of pixels that all threads together may have in memory.

    Without it, memory would be as many images as there are threads, of any size. An image of more
    pixels than the whole budget takes all of it, and so is alone.
    """

    def __init__(self, pixels: int):
        self._all = self._left = pixels
        self._given_back = threading.Condition()

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yields a function, to be called once, that waits until so many pixels are left.

        It takes them, and they are given back when the context ends. Until then the thread must not
        wait for another one that needs a share.
        """
        taken = 0

        def reserve(pixels: int) -> None:
            nonlocal taken
            pixels = min(pixels, self._all)
            with self._given_back:
                self._given_back.wait_for(lambda: self._left >= pixels)
                self._left -= pixels
            taken = pixels

        try:
            yield reserve
        finally:
            with self._given_back:
                self._left += taken
                self._given_back.notify_all()
