"""Which server is asked next, by a clock of the test's own."""

import pytest

from r3_rl.scoring.judge_servers import ServerPool


def test_the_idlest_is_chosen_and_turns_are_taken():
    pool = ServerPool(["a", "b", "c"], backoff_s=1.0)
    order = []
    for _ in range(6):
        server = pool.choose(now=0.0)
        order.append(server.url)
        with pool.using(server):
            assert pool.choose(now=0.0) is not server
    assert order == ["a", "b", "c"] * 2


def test_rests_double_up_to_half_a_minute_and_end_with_a_success():
    pool = ServerPool(["a"], backoff_s=1.0)
    (server,) = pool.servers
    now = 0.0
    for expected in (1, 2, 4, 8, 16, 30, 30):
        pool.failed(server, started=now, now=now)
        assert server.rests_until - now == pytest.approx(expected, rel=0.25)
        now = server.rests_until
    pool.succeeded(server)
    pool.failed(server, started=now, now=now)
    assert server.rests_until - now == pytest.approx(1, rel=0.25)


def test_failures_of_requests_under_way_together_count_once():
    pool = ServerPool(["a"], backoff_s=1.0)
    (server,) = pool.servers
    for _ in range(32):
        pool.failed(server, started=0.0, now=1.0)
    assert server.num_strikes == 1


def test_a_wait_that_was_asked_for_is_kept():
    pool = ServerPool(["a", "b"], backoff_s=1.0)
    first, second = pool.servers
    pool.failed(first, started=0.0, now=0.0, rest_s=100.0)
    pool.failed(second, started=0.0, now=0.0, rest_s=50.0)
    assert (first.rests_until, second.rests_until) == (100.0, 50.0)
    assert pool.choose(now=1.0) is second, "when all rest, the one that is ready first"


def test_down_means_that_all_failed_and_often_enough():
    pool = ServerPool(["a", "b"], backoff_s=1.0)
    first, second = pool.servers
    for now in (0.0, 1.0, 2.0):
        pool.failed(first, started=now, now=now)
    assert not pool.is_down(3), "the other may be well"
    pool.failed(second, started=3.0, now=3.0)
    assert pool.is_down(3)
    assert not pool.is_down(5)
    pool.succeeded(first)
    assert not pool.is_down(3)
