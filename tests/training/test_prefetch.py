from __future__ import annotations

import threading

import pytest

from speechgpt_lib.training.batches import Prefetched


def test_batches_are_the_same_and_come_early():
    made, ready = [], threading.Event()

    def batch_at(step: int, rank: int, world_size: int):
        made.append(step)
        if step == 12:
            ready.set()
        return (step, rank, world_size)

    batches = Prefetched(batch_at, ahead=2)
    assert batches(10, 1, 3) == (10, 1, 3)
    assert ready.wait(10), "steps 11 and 12 should be made meanwhile"
    assert [batches(step, 1, 3) for step in range(11, 20)] == [
        (step, 1, 3) for step in range(11, 20)
    ]
    assert sorted(made) == sorted(set(made)), "no batch is made twice"


def test_what_goes_wrong_is_raised_in_its_step():
    def batch_at(step: int, rank: int, world_size: int):
        if step == 2:
            raise OSError("the disk is gone")
        return step

    batches = Prefetched(batch_at, ahead=3)
    assert [batches(0, 0, 1), batches(1, 0, 1)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        batches(2, 0, 1)
