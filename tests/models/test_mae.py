"""MAE's models beyond the golden numbers: initialisation, sizes, errors."""
import math

import numpy as np
import paddle
import pytest

from ppssl.errors import BadRequest
from ppssl.models import registry
from ppssl.models.layers import drop_path, linear_drop_path
from ppssl.models.mae import MaskedAutoencoderViT
from ppssl.models.masking import patchify, unpatchify
from ppssl.models.pos_embed import sincos_table
from ppssl.models.vit import VisionTransformer

DIM = 96


@pytest.fixture(scope="module")
def mae():
    paddle.seed(0)
    return MaskedAutoencoderViT(img_size=32, patch_size=8, embed_dim=DIM, depth=2, num_heads=4, decoder_embed_dim=64, decoder_depth=1,
                                decoder_num_heads=4)


def uniform_within(values: np.ndarray, bound: float) -> bool:
    """All within the bound, and spread like a uniform distribution (5 standard errors)."""
    flat = values.reshape(-1)
    error = bound / math.sqrt(3 * flat.size)
    std_error = 5 * bound * math.sqrt((1 / 5 - 1 / 9) / flat.size)
    return np.abs(flat).max() <= bound and abs(flat.mean()) < 5 * error and abs((flat ** 2).mean() - bound ** 2 / 3) < std_error * bound


@pytest.mark.parametrize("name, fan_in, fan_out", [
    ("blocks.0.attn.qkv.weight", DIM, 3 * DIM), ("blocks.1.attn.proj.weight", DIM, DIM), ("blocks.0.mlp.fc1.weight", DIM, 4 * DIM),
    ("decoder_embed.weight", DIM, 64), ("decoder_pred.weight", 64, 192), ("patch_embed.proj.weight", 192, DIM)])
def test_matrices_start_xavier_uniform_the_patch_convolution_as_a_matrix(mae, name, fan_in, fan_out):
    assert uniform_within(mae.state_dict()[name].numpy(), math.sqrt(6 / (fan_in + fan_out)))


def test_biases_norms_and_tokens_start_as_the_official_code_has_them(mae):
    state = {k: v.numpy() for k, v in mae.state_dict().items()}
    biases = [v for k, v in state.items() if k.endswith("bias") and not k.startswith("patch_embed")]
    assert not np.concatenate(biases).any() and (state["norm.weight"] == 1).all()
    assert uniform_within(state["patch_embed.proj.bias"], 1 / math.sqrt(192))
    assert 0.01 < state["cls_token"].std() < 0.03 and 0.01 < state["mask_token"].std() < 0.03


def test_the_classifier_starts_with_normal_weights_and_a_trainable_position_table():
    paddle.seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=DIM, depth=1, num_heads=4, num_classes=5)
    weight = model.blocks[0].mlp.fc1.weight.numpy()
    assert abs(weight.std() - 0.02) < 5 * 0.02 / math.sqrt(2 * weight.size) and abs(weight.mean()) < 5 * 0.02 / math.sqrt(weight.size)
    assert model.pos_embed.trainable and 0.018 < model.pos_embed.numpy().std() < 0.022


def test_the_position_tables_are_fixed_and_not_trained(mae):
    fixed = {n for n, p in mae.named_parameters() if not p.trainable}
    assert fixed == {"pos_embed", "decoder_pos_embed"}


def test_rectangular_images_work_and_their_table_knows_rows_from_columns():
    model = MaskedAutoencoderViT(img_size=(32, 16), patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=8,
                                 decoder_depth=1, decoder_num_heads=2)
    loss, pred, mask = model(paddle.randn([2, 3, 32, 16]))
    assert pred.shape == [2, 8, 192] and mask.sum(1).tolist() == [6.0, 6.0] and math.isfinite(loss.item())
    table = sincos_table(16, (4, 2))[0]
    assert (table[0::2, :8] == table[0, :8]).all() and (table[:2, 8:] == table[0, 8:]).all()      # columns first, then rows


def test_an_image_of_another_size_is_refused_with_the_fix(mae):
    with pytest.raises(BadRequest, match="--input_size"):
        mae(paddle.randn([1, 3, 64, 64]))


def test_features_do_not_depend_on_chance(mae):
    images = paddle.randn([3, 3, 32, 32])
    mae.eval()
    first, second = mae.features(images).numpy(), mae.features(images).numpy()
    assert first.shape == (3, DIM) and (first == second).all()


@pytest.mark.parametrize("patch", [(8, 8), (4, 8)])
def test_unpatchify_is_the_inverse_of_patchify(patch):
    images = paddle.randn([2, 3, 16, 24])
    assert (unpatchify(patchify(images, patch), patch, (16 // patch[0], 24 // patch[1])) == images).all().item()


def test_drop_path_drops_whole_samples_at_its_rate_and_keeps_the_mean():
    noise = paddle.to_tensor(np.linspace(0, 1, 1000, endpoint=False, dtype=np.float32))
    out = drop_path(paddle.ones([1000, 3]), 0.25, noise).numpy()
    assert ((out == 0).all(1) | (out == out[-1]).all(1)).all() and (out[:, 0] == 0).sum() == 250
    assert out.mean() == pytest.approx(1.0, rel=1e-5) and linear_drop_path(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(BadRequest, match="did you mean mae_vit_huge_patch14"):
        registry.find("pretrain", "mae_vit_huge_patch16")
