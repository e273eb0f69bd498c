"""The order of samples and its distribution over ranks."""
import pytest

from ppssl.data.sampler import EvalSampler, TrainSampler


def batches(sampler, epoch=0, first=0):
    sampler.epoch, sampler.first = epoch, first
    return list(sampler)


def test_an_epoch_shows_every_sample_at_most_once_and_fills_every_batch():
    shown = [i for batch in batches(TrainSampler(50, 8)) for _, i in batch]
    assert len(shown) == len(set(shown)) == 48


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(i for b in batches(TrainSampler(50, 8, seed=seed), epoch) for _, i in b) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_see_the_batches_of_one_rank(world):
    whole = batches(TrainSampler(64, 8), epoch=3)
    shares = [batches(TrainSampler(64, 8 // world, rank, world), epoch=3) for rank in range(world)]
    assert [sorted(b) for b in whole] == [sorted(sum((share[k] for share in shares), [])) for k in range(len(whole))]


def test_a_sampler_continues_in_the_middle_of_an_epoch():
    sampler = TrainSampler(64, 8)
    assert batches(sampler, epoch=1)[3:] == batches(sampler, epoch=1, first=3)


@pytest.mark.parametrize("size, batch, world", [(10, 4, 1), (10, 4, 3), (3, 4, 2), (1, 4, 2)])
def test_evaluation_shows_every_sample_exactly_once_over_all_ranks(size, batch, world):
    samplers = [EvalSampler(size, batch, rank, world) for rank in range(world)]
    assert sorted(i for s in samplers for b in s for _, i in b) == list(range(size))
    assert all(len(list(s)) == len(s) for s in samplers)
