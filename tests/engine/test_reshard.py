"""--resume_reshard: the same place in the epoch, with other ranks or batches."""
import pytest

from ppssl import cli
from ppssl.engine import checkpoint
from ppssl.engine.checkpoint import Snapshot
from ppssl.engine.loop import Progress
from ppssl.engine.reshard import resharded
from tests.engine.every_method import Requests
from tests.pictures import image_folder


def stopped(batch: int, batch_size: int, world: int, batches: int) -> Snapshot:
    return Snapshot({}, Progress(epoch=3, batch=batch, step=50), 50, None, {"batch_size": batch_size}, world, batches)


@pytest.mark.parametrize("snap, effective, accum_iter, batches, batch", [
    (stopped(4, 8, 2, 10), 16, 1, 10, 4),                 # as many images a step: the same step
    (stopped(4, 8, 2, 10), 16, 2, 20, 8),                 # 64 images, now in micro-batches of 8
    (stopped(4, 8, 2, 10), 30, 1, 5, 2),                  # 64 images: the edge before is at 60
    (stopped(9, 8, 2, 10), 64, 1, 2, 1),                  # 144 of 160: two whole steps fit, and there is still one to do
    (stopped(10, 8, 2, 10), 64, 1, 2, 2),                 # a finished epoch stays finished
    (stopped(10, 8, 2, 10), 4, 1, 41, 41),
])
def test_the_run_goes_on_at_the_last_step_edge_at_or_before_the_same_image(snap, effective, accum_iter, batches, batch):
    found = resharded(snap, effective, accum_iter, batches)
    assert (found.epoch, found.batch, found.step) == (3, batch, 50)


@pytest.fixture
def requests(tmp_path):
    return Requests(tmp_path, image_folder(tmp_path / "data"))


def resume(requests, out: str, *flags: str) -> int:
    task, *rest = requests.request("mae", out, "--resume", "auto", *flags)
    return cli.main(task, rest)


def test_another_batch_size_is_refused_and_mapped_when_asked(requests, capsys):
    requests.here([requests.request("mae", "out", "--batch_size", "2", "--max_train_step", "3")])
    assert resume(requests, "out", "--batch_size", "4") == 2
    assert "written with --batch_size 2, this run has 4: use 2 to resume, or add --resume_reshard" in capsys.readouterr().err
    assert resume(requests, "out", "--batch_size", "4", "--resume_reshard") == 0
    assert "--batch_size 2 -> 4: it goes on at image 4 of the epoch, of which 6 were done" in capsys.readouterr().out
    last = checkpoint.read(checkpoint.found(requests.folder / "out")[-1])
    assert last.progress.step == 3 + 3 + 4 and last.progress.epoch == 1


@pytest.mark.slow
@pytest.mark.parametrize("name, flags", [("mae", ["--batch_size", "2", "--accum_iter", "2"]), ("byol", ["--batch_size", "4"])])
def test_two_ranks_continued_by_one_with_as_large_steps_are_one_rank_from_the_start(requests, name, flags):
    requests.on_two_ranks([requests.request(name, "out", "--batch_size", "2", "--max_train_step", "3")])
    requests.here([requests.request(name, "out", *flags, "--resume", "auto", "--resume_reshard"),
                   requests.request(name, "whole", "--batch_size", "4")])
    requests.assert_equal_to_rounding("whole", "out")
    assert requests.newest("out").name == requests.newest("whole").name
