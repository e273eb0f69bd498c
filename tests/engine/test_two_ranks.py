"""Two real ranks on CPU (GLOO) against one with the whole batch, for every method."""
import pytest

from tests.engine.every_method import REQUESTS, Requests
from tests.pictures import image_folder

# no drop path, erasing or mixup: ranks draw these apart
PLAIN = {"finetune": ["--drop_path", "0", "--reprob", "0"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every method on one rank with batches of 4 and on two with batches of 2, with and without accumulation."""
    folder = tmp_path_factory.mktemp("ranks")
    requests = Requests(folder, image_folder(folder / "data"))

    def listed(ranks: int) -> list[list[str]]:
        return [requests.request(name, f"{name}-{accum_iter}-{ranks}", "--accum_iter", accum_iter, "--batch_size", str(4 // ranks),
                                 *PLAIN.get(name, [])) for name in REQUESTS for accum_iter in "12"]
    requests.here(listed(1))
    requests.on_two_ranks(listed(2))
    return requests


@pytest.mark.slow
@pytest.mark.parametrize("accum_iter", "12")
@pytest.mark.parametrize("name", REQUESTS)
def test_two_ranks_with_half_the_batch_equal_one_with_the_whole(runs, name, accum_iter):
    """Weights, teachers, running statistics, optimizer state and logged losses."""
    runs.assert_equal_to_rounding(*(f"{name}-{accum_iter}-{ranks}" for ranks in (1, 2)))
    assert runs.losses(f"{name}-{accum_iter}-1") == pytest.approx(runs.losses(f"{name}-{accum_iter}-2"), rel=1e-5)
