"""Work divided over this rank's threads."""
import threading

import paddle
import pytest

from ppssl import threads


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 2)


def test_jobs_run_in_several_threads_and_all_are_done_on_return():
    ran, meeting = [], threading.Barrier(2, timeout=30)

    def job():
        meeting.wait()                                    # both have to be running
        ran.append(threading.get_ident())
    threads.together([job, job])
    assert len(set(ran)) == 2


def test_gradients_are_off_inside_and_as_they_were_outside():
    seen = []
    for _ in range(20):
        threads.together([lambda: seen.append(paddle.is_grad_enabled())] * 2)
        with paddle.no_grad():
            threads.together([lambda: seen.append(paddle.is_grad_enabled())] * 2)
            assert not paddle.is_grad_enabled()
        assert paddle.is_grad_enabled()
    assert not any(seen) and len(seen) == 80


def test_what_a_job_raises_is_raised_here():
    def fail():
        raise ValueError("no")
    for jobs in ([fail, lambda: None], [lambda: None, fail]):
        with pytest.raises(ValueError, match="no"):
            threads.together(jobs)


def test_parts_are_about_equal_and_hold_everything_once():
    tensors = [paddle.zeros([n]) for n in (10, 900, 30, 500, 450, 5)]
    parts = threads.in_parts(tensors, lambda t: t)
    assert sorted(t.shape[0] for part in parts for t in part) == [5, 10, 30, 450, 500, 900]
    assert [sum(t.size for t in part) for part in parts] in ([945, 950], [950, 945])
    assert len(threads.in_parts(tensors[:1], lambda t: t)) == 1 and threads.in_parts([], lambda t: t) == [[]]


def test_one_thread_takes_everything_in_its_order(monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 1)
    tensors = [paddle.zeros([n]) for n in (10, 900, 30)]
    [part] = threads.in_parts(tensors, lambda t: t)
    assert [t.size for t in part] == [10, 900, 30]


def test_results_come_in_order_and_parts_cover_the_range(monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    for length in (0, 1, 2, 3, 7):
        parts = threads.over(length, 100, lambda first, last: list(range(first, last)))
        assert sum(parts, []) == list(range(length)) and len(parts) == min(2, length)
    assert threads.at_once([lambda i=i: i for i in range(9)]) == list(range(9))


def test_what_is_small_is_not_divided():
    assert len(threads.over(10, threads.SMALL, lambda first, last: None)) == 1
    assert len(threads.over(10, threads.SMALL + 1, lambda first, last: None)) == 2


def test_jobs_inside_a_job_run_one_after_another():
    inner = threads.at_once([lambda: threads.at_once([threading.get_ident] * 2)] * 2)
    assert all(a == b for a, b in inner)


def test_without_openmp_jobs_run_one_after_another(monkeypatch):
    monkeypatch.setattr(threads, "library", lambda name: None)
    assert threads.at_once([threading.get_ident] * 2) == [threading.get_ident()] * 2
    with pytest.raises(ZeroDivisionError):
        threads.at_once([lambda: 1 / 0, lambda: None])
