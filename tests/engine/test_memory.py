"""--recompute and --sharding take less memory and change nothing else."""
import numpy as np
import pytest

from ppssl import cli, dist
from ppssl.engine.recompute import recompute_blocks
from ppssl.engine.sharding import Sharded
from ppssl.errors import BadRequest
from ppssl.threads import shares
from tests.engine.every_method import Requests
from tests.engine.tiny import Batches, method, model, weights
from tests.pictures import image_folder

DROPPING = {"bootmae": ["--drop_path", "0.3"], "finetune": ["--drop_path", "0.3", "--mixup", "0.8"]}
ON_RANKS = {"mae": "--sharding", "convmae": "--recompute", "tec": "--recompute", "finetune": "--sharding", "linprobe": "--sharding"}


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    return Requests(folder, image_folder(folder / "data", per_class=4))


def assert_same(requests, name: str, first: str, second: str) -> None:
    """Bit for bit, but where a block's input has other uses too: its gradient is summed in another order then."""
    same = requests.assert_equal_to_rounding if name in ("bootmae", "tec") else requests.assert_same
    same(f"{name}-{first}", f"{name}-{second}")


@pytest.mark.parametrize("name", ["mae", "convmae", "fastconvmae", "bootmae", "tec", "finetune"])
def test_a_recomputed_run_is_the_plain_run_drop_path_included(requests, name):
    flags = ["--batch_size", "2", "--accum_iter", "2", *DROPPING.get(name, [])]
    requests.here([requests.request(name, f"{name}-plain", *flags), requests.request(name, f"{name}-again", "--recompute", *flags)])
    assert_same(requests, name, "plain", "again")


def test_every_block_is_run_again_in_the_backward_pass():
    m, calls = method(), []
    for layer in (*m.model.blocks, *m.model.decoder_blocks):
        layer.norm1.register_forward_pre_hook(lambda *_: calls.append(1))
    recompute_blocks(m.model, None)
    batch = next(Batches().epoch(0))
    loss, _ = m.loss(m.model, batch, None)
    assert len(calls) == 2
    loss.backward()
    assert len(calls) == 4
    m.model.features(batch["image"]).sum().backward()
    assert len(calls) == 6


@pytest.mark.parametrize("name", ["byol", "linprobe"])
def test_what_has_no_blocks_is_refused_in_one_line(requests, capsys, name):
    task, *flags = requests.request(name, f"{name}-refused", "--batch_size", "4", "--recompute")
    assert cli.main(task, flags) == 2
    said = capsys.readouterr().err.strip()
    assert "--recompute is for the blocks of vision transformers" in said and "\n" not in said


@pytest.mark.slow
def test_on_two_ranks_both_give_the_plain_run_and_a_sharded_run_resumes(requests):
    """A checkpoint of a sharded run is a plain one: either kind resumes the other."""
    flags = ["--batch_size", "2", "--accum_iter", "2", "--drop_path", "0"]

    def wanted(name: str, out: str, *more: str) -> list[str]:
        return requests.request(name, f"{name}-{out}", *(flags if name == "finetune" else flags[:4]), *more)
    requests.on_two_ranks([wanted(name, out, *more) for name, flag in ON_RANKS.items() for out, more in (("two", []), ("less", [flag]))]
                          + [wanted("mae", "parts", "--sharding", "--max_train_step", "1"), wanted("mae", "parts", "--resume", "auto"),
                             wanted("mae", "other", "--max_train_step", "1"), wanted("mae", "other", "--sharding", "--resume", "auto")])
    for name in ON_RANKS:
        assert_same(requests, name, "two", "less")
    assert_same(requests, "mae", "two", "parts")
    assert_same(requests, "mae", "two", "other")


def test_an_optimizer_over_some_parameters_moves_these_and_keeps_state_of_no_others():
    m = method()
    optimizer = m.build_optimizer().only(lambda name: name.startswith("decoder_blocks."))
    before = weights(m)
    m.loss(m.model, next(Batches().epoch(0)), None)[0].backward()
    optimizer.step(1e-3)
    moved = {name for name, value in weights(m).items() if not np.array_equal(value, before[name])}
    assert moved and moved == {key.split(".", 1)[1] for key in optimizer.state()}
    assert all(name.startswith("decoder_blocks.") for name in moved)


def test_shares_are_about_equal_and_nothing_is_left_out():
    sizes = {name: p.size for name, p in model().named_parameters()}
    owners = shares(sizes, 3)
    loads = [sum(size for name, size in sizes.items() if owners[name] == rank) for rank in range(3)]
    assert owners.keys() == sizes.keys() and max(loads) - min(loads) <= max(sizes.values())


def test_more_ranks_than_tensors_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "world", lambda: 3)
    with pytest.raises(BadRequest, match="--sharding divides 2 trained tensors over 3 ranks"):
        Sharded(method().build_optimizer().only(lambda name: name.startswith("norm.")))
