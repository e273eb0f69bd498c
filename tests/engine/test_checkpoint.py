"""Checkpoints: a run that stopped and resumed is the run that never stopped."""
import numpy as np
import pytest

from convert.formats import Refused
from ppssl.engine import checkpoint
from ppssl.engine.loop import Plan, Progress, train
from ppssl.engine.precision import LossScale
from ppssl.errors import BadRequest
from tests.engine.tiny import Batches, largest_difference, method, weights


def stop_after(m, micros, path, accum_iter=1, scaler=None):
    """Train for some micro-batches and save there."""
    optimizer, progress = m.build_optimizer(), Progress()
    for i, micro in enumerate(train(m, optimizer, Batches(), Plan(2, accum_iter), progress, scaler), start=1):
        if i == micros:
            break
    checkpoint.save(path, m, optimizer, progress, scaler, world=1)


def resume(m, path, accum_iter=1):
    optimizer = m.build_optimizer()
    snap = checkpoint.read(path)
    progress = checkpoint.restore(snap, m, optimizer)
    micros = list(train(m, optimizer, Batches(), Plan(2, accum_iter), progress, snap.scaler))
    return optimizer, micros


@pytest.mark.parametrize("micros, accum_iter", [(4, 1), (2, 1), (6, 2), (2, 2)])
def test_a_resumed_run_is_bit_identical_at_an_epoch_edge_and_inside(tmp_path, micros, accum_iter):
    whole, first, second = (method(seed, accum_iter=accum_iter) for seed in (0, 0, 1))
    optimizer = whole.build_optimizer()
    losses = [m.stats["loss"].item() for m in train(whole, optimizer, Batches(), Plan(2, accum_iter), Progress())]
    stop_after(first, micros, tmp_path / "c", accum_iter)
    resumed, rest = resume(second, tmp_path / "c", accum_iter)
    assert largest_difference(weights(whole), weights(second)) == 0
    assert largest_difference({k: v.numpy() for k, v in optimizer.state().items()}, {k: v.numpy() for k, v in resumed.state().items()}) == 0
    assert [m.stats["loss"].item() for m in rest] == losses[micros:] and resumed.steps == optimizer.steps


def test_the_loss_scale_is_part_of_a_checkpoint(tmp_path):
    stop_after(method(), 2, tmp_path / "c", scaler=LossScale(scale=8.0, growth_interval=100))
    assert checkpoint.read(tmp_path / "c").scaler == LossScale(scale=8.0, growth_tracker=2, growth_interval=100)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    from tests.engine.tiny import MaskedAutoencoderViT

    stop_after(method(), 2, tmp_path / "c")
    other = method()
    other.model = MaskedAutoencoderViT(img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=8, decoder_depth=1,
                                       decoder_num_heads=2)
    with pytest.raises(BadRequest, match="does not fit"):
        checkpoint.restore(checkpoint.read(tmp_path / "c"), other, other.build_optimizer())


@pytest.mark.parametrize("change", ["world", "batch_size", "accum_iter", "seed"])
def test_resuming_with_other_data_order_is_refused_with_the_old_value(tmp_path, change):
    stop_after(method(), 2, tmp_path / "c")
    values = {} if change == "world" else {change: 7}
    with pytest.raises(BadRequest, match="use (1|4|0) to resume"):
        checkpoint.check_same_run(checkpoint.read(tmp_path / "c"), method(**values).config, 2 if change == "world" else 1)


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_named(tmp_path, capsys):
    """Of four, one is empty, one is cut off and one has a bit flipped."""
    for step in (2, 4, 6, 10):
        stop_after(method(), 2, tmp_path / f"checkpoint-epoch0000-step{step:08d}.safetensors")
    oldest, *damaged = checkpoint.found(tmp_path)
    damaged[0].write_bytes(b"")
    damaged[1].write_bytes(damaged[1].read_bytes()[:-10])
    content = bytearray(damaged[2].read_bytes())
    content[-1] ^= 1
    damaged[2].write_bytes(bytes(content))
    path, _ = next(checkpoint.newest(tmp_path))
    said = capsys.readouterr().out
    assert path == oldest and all(str(d) in said for d in damaged)


def test_a_file_that_is_no_training_checkpoint_is_refused(tmp_path):
    from convert.formats import save_safetensors

    save_safetensors(tmp_path / "weights.safetensors", {"a": np.zeros(3, np.float32)})
    with pytest.raises(Refused, match="no training state"):
        checkpoint.read(tmp_path / "weights.safetensors")


def test_pruning_keeps_the_newest_and_the_edges_of_every_nth_epoch(tmp_path):
    for epoch, step in [(1, 10), (2, 20), (2, 25), (3, 30), (4, 40), (5, 50), (5, 55)]:
        (tmp_path / f"checkpoint-epoch{epoch:04d}-step{step:08d}.safetensors").touch()
    (tmp_path / "checkpoint-best.safetensors").touch()
    checkpoint.prune(tmp_path, keep_last=2, keep_every=2)
    assert [tuple(int(n) for n in checkpoint.NAME.fullmatch(p.name).groups()) for p in checkpoint.found(tmp_path)] == [
        (2, 20), (4, 40), (5, 50), (5, 55)]
    assert (tmp_path / "checkpoint-best.safetensors").exists()
