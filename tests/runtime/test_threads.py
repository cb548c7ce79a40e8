"""Threads that work ahead: results, their order, and how far ahead they are."""

import threading
import time

import pytest

from wsdl_jax.runtime import threads


@pytest.mark.parametrize("ahead", [0, 1, 3, 64])
def test_results_come_in_order_and_a_bounded_number_of_items_is_taken(ahead):
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    def square(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number**2

    for count, result in enumerate(threads.map_ahead(square, items(), ahead)):
        assert result == count**2
        assert len(taken) == min(20, count + ahead + 1)
    assert count == 19


def test_items_are_worked_on_at_the_same_time():
    together = threading.Barrier(3, timeout=60)
    assert len(list(threads.map_ahead(lambda _: together.wait(), range(3), 2))) == 3


def test_an_error_comes_in_its_turn_and_ends_the_threads():
    begun = []

    def fails_at_2(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    results = threads.map_ahead(fails_at_2, range(1000), 5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    count = len(begun)
    assert count <= 8
    time.sleep(0.05)
    assert len(begun) == count


def test_closing_drops_what_has_not_begun():
    begun = []
    release = threading.Event()

    def waits(number: int) -> int:
        begun.append(number)
        if number:
            release.wait(60)
        return number

    results = threads.map_ahead(waits, range(1000), 200)
    assert next(results) == 0
    threading.Timer(0.1, release.set).start()
    results.close()
    count = len(begun)
    assert count < 200
    time.sleep(0.05)
    assert len(begun) == count


def test_work_at_once_is_bounded():
    """By its size, not its number; what is larger than the bound is done, and alone."""
    bounded, lock = threads.Bounded(10), threading.Lock()
    under_way, seen = [], []

    def work(size: int) -> None:
        with bounded.work(size):
            with lock:
                under_way.append(size)
                seen.append(tuple(under_way))
            time.sleep(0.002)
            with lock:
                under_way.remove(size)

    sizes = [3, 7, 4, 99, 10, 1, 5, 5, 0, 2] * 4
    list(threads.map_ahead(work, sizes))
    assert len(seen) == len(sizes)
    for together in seen:
        assert sum(min(size, 10) for size in together) <= 10
    assert max(map(len, seen)) > 1
    with pytest.raises(ValueError, match="x"), bounded.work(10):
        raise ValueError("x")
    with bounded.work(10):  # there is room again
        pass
