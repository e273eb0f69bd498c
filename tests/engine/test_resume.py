"""Resuming is bit-exact for every method, on one rank and on two: at an epoch's edge and inside, with accumulation, averages, LARS."""
import pytest

from tests.engine.every_method import REQUESTS, Requests
from tests.pictures import image_folder

PER_EPOCH = {1: 4, 2: 2}                                  # ranks: optimizer steps
STOPS = {"inside": -1, "edge": 0}                         # of the first epoch, in steps from its end
RANDOM = {"finetune": ["--drop_path", "0.3", "--reprob", "0.9", "--mixup", "0.8"], "bootmae": ["--drop_path", "0.3"]}


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    return Requests(folder, image_folder(folder / "data", per_class=8))


@pytest.fixture(scope="module", params=[1, 2])
def runs(requests, request):
    """Every method from start to end, and stopped and resumed, on that many ranks."""
    ranks = request.param
    run = requests.here if ranks == 1 else requests.on_two_ranks

    def wanted(name: str, out: str, *flags: str) -> list[str]:
        return requests.request(name, f"{name}-{out}-{ranks}", "--accum_iter", "2", "--batch_size", "2", *RANDOM.get(name, []), *flags)
    run([wanted(name, "whole") for name in REQUESTS])
    run([wanted(name, stop, "--max_train_step", str(PER_EPOCH[ranks] + shift)) for name in REQUESTS for stop, shift in STOPS.items()])
    run([wanted(name, stop, "--resume", "auto") for name in REQUESTS for stop in STOPS])
    return requests, ranks


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_run_that_stopped_and_resumed_is_the_run_that_never_stopped(runs, name, stop):
    """Everything in the last checkpoint: weights, teacher or average, running statistics, optimizer state; and the losses."""
    requests, ranks = runs
    requests.assert_same(f"{name}-whole-{ranks}", f"{name}-{stop}-{ranks}")
    losses = [requests.losses(f"{name}-{out}-{ranks}") for out in ("whole", stop)]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-12)
