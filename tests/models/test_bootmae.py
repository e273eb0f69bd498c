"""BootMAE's networks beyond the golden numbers: initialisation, orders, sizes, errors."""
import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppssl.errors import BadRequest
from ppssl.models import registry
from ppssl.models.boot_blocks import Attention, CrossAttention, attend, pretraining_inits
from ppssl.models.boot_vit import BootVisionTransformer
from ppssl.models.bootmae import BootMAE, hidden_mask, shuffled_order
from tests.models.test_mae import uniform_within

DIM = 48
ENCODER = dict(img_size=16, patch_size=4, embed_dim=DIM, depth=2, num_heads=4)
SIZES = ENCODER | dict(decode_dim=36, decoder_depth=1, fea_list=(0, 1))


@pytest.fixture(scope="module")
def network():
    paddle.seed(0)
    return BootMAE(**SIZES)


@pytest.fixture(scope="module")
def state(network):
    return {k: v.numpy() for k, v in network.state_dict().items()}


def normal_around_zero(values: np.ndarray, std: float) -> bool:
    """Mean 0 and that deviation, within 5 standard errors."""
    flat = values.reshape(-1)
    error = std / math.sqrt(flat.size)
    return abs(flat.std() - std) < 5 * error / math.sqrt(2) and abs(flat.mean()) < 5 * error


# ---- how networks start

@pytest.mark.parametrize("name, fan_in, fan_out", [
    ("blocks.0.attn.qkv.weight", DIM, DIM), ("blocks.1.attn.proj.weight", DIM, DIM), ("down.weight", DIM, 36),
    ("blocks.0.mlp.fc1.weight", DIM, 4 * DIM), ("patch_embed.proj.weight", 48, DIM),
    ("decode_blocks.0.attn.qkv.weight", 36, 36), ("decode_blocks.0.c_attn.kv.weight", DIM, 72),
    ("decode_blocks.0.c_attn.q.weight", 36, 36), ("decode_blocks_1.0.c_attn.kv.weight", DIM, 2 * DIM)])
def test_matrices_start_xavier_uniform_query_key_and_value_each_by_itself(state, name, fan_in, fan_out):
    assert uniform_within(state[name], math.sqrt(6 / (fan_in + fan_out)))


def test_biases_start_at_zero_but_the_pixel_heads_and_norms_at_one(state):
    biases = [v for k, v in state.items() if k.endswith("bias") and k != "lm_head.proj.bias"]
    assert not np.concatenate(biases).any() and (state["decode_blocks.0.norm4.weight"] == 1).all()
    bound = 1 / math.sqrt(3 * 16)
    assert uniform_within(state["lm_head.proj.weight"], bound) and 0 < np.abs(state["lm_head.proj.bias"]).max() <= bound


def test_mask_tokens_are_cut_at_one_deviation_and_the_cls_token_is_next_to_nothing():
    paddle.seed(0)
    wide = {"embed_dim": 4000, "num_heads": 1, "depth": 1, "fea_list": [0], "mlp_ratio": 0.001, "decode_dim": 1000}
    token = BootMAE(**SIZES | wide).state_dict()
    values = token["mask_token_1"].numpy().reshape(-1)
    inside = 0.02 * math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(0.5)))
    assert np.abs(values).max() <= 0.02 and abs(values.std() - inside) < 5 * inside / math.sqrt(2 * values.size)
    assert normal_around_zero(token["cls_token"].numpy(), 1e-6)


def test_the_classifier_starts_as_beit_with_weaker_branches_the_deeper_they_are():
    paddle.seed(0)
    model = BootVisionTransformer(img_size=16, patch_size=4, num_classes=20, embed_dim=96, depth=3, num_heads=4)
    for i, block in enumerate(model.blocks):
        for layer in (block.mlp.fc1, block.attn.qkv):
            assert normal_around_zero(layer.weight.numpy(), 0.02)
        for layer in (block.mlp.fc2, block.attn.proj):
            assert normal_around_zero(layer.weight.numpy(), 0.02 / math.sqrt(2 * (i + 1)))
    assert normal_around_zero(model.head.weight.numpy(), 2e-5) and not model.head.bias.numpy().any()


@pytest.mark.parametrize("kind, sizes", [(BootMAE, SIZES), (BootVisionTransformer, ENCODER)])
def test_position_tables_are_fixed_and_know_rows_first(kind, sizes):
    model = kind(**sizes)
    fixed = {name: p for name, p in model.named_parameters() if not p.trainable}
    assert fixed.keys() <= {"pos_embed", "de_pos_embed"} and "pos_embed" in fixed
    table = model.pos_embed.numpy()[0]
    half = table.shape[1] // 2
    assert not table[0].any()
    assert (table[1:5, :half] == table[1, :half]).all() and (table[1::4, half:] == table[1, half:]).all()


# ---- orders

def test_blocks_come_last_in_an_order_and_as_many_as_the_roll_come_first_of_all():
    blocks = np.zeros((4, 16), np.uint8)
    blocks[:, 3:9] = 1
    order = shuffled_order(paddle.to_tensor(blocks), paddle.rand([4, 16]), paddle.arange(4)).numpy()
    assert (np.sort(order, axis=1) == np.arange(16)).all()
    for roll, row in enumerate(order):
        in_block = (row >= 3) & (row < 9)
        assert in_block[:roll].all() and not in_block[roll:10 + roll].any() and in_block[10 + roll:].all()


def test_the_roll_of_one_image_does_not_touch_another():
    blocks, noise = paddle.zeros([2, 16], "uint8"), paddle.rand([1, 16]).expand([2, 16])
    still, rolled = shuffled_order(blocks, noise, paddle.to_tensor([0, 2])).numpy()
    assert (rolled == np.roll(still, 2)).all()


def test_the_mask_marks_the_last_patches_of_the_order():
    order = paddle.to_tensor([[2, 0, 3, 1]])
    mask, restore = hidden_mask(order, 3)
    assert mask.tolist() == [[1.0, 1.0, 0.0, 1.0]] and restore.tolist() == [[1, 3, 0, 2]]


# ---- forward passes

def orders(count: int, patches: int = 16):
    return paddle.to_tensor(np.stack([np.random.default_rng(i).permutation(patches) for i in range(count)]))


def test_predictions_do_not_depend_on_what_is_hidden(network):
    network.eval()
    images, order = paddle.randn([2, 3, 16, 16]), orders(2)
    mask = hidden_mask(order, 11)[0].reshape([2, 1, 4, 4]).repeat_interleave(4, 2).repeat_interleave(4, 3)
    seen = network(images, order, 11)
    for ours, theirs in zip(seen, network(images + 7 * mask, order, 11)):
        assert (ours - theirs).abs().max().item() == 0
    assert (seen[0] - network(images + 7 * (1 - mask), order, 11)[0]).abs().max().item() > 1e-3


def test_the_order_within_the_visible_and_within_the_hidden_patches_does_not_matter(network):
    network.eval()
    images, order = paddle.randn([1, 3, 16, 16]), orders(1)
    other = paddle.concat([order[:, :5].flip(1), order[:, 5:].flip(1)], axis=1)
    for a, b in zip(network(images, order, 11), network(images, other, 11)):
        assert (a - b).abs().max().item() < 1e-5


def test_rectangular_images_work():
    model = BootMAE(**SIZES | {"img_size": (16, 8)})
    pixels, features = model(paddle.randn([2, 3, 16, 8]), orders(2, 8), 6)
    assert pixels.shape == [2, 3, 16, 8] and features.shape == [2, 8, DIM]
    assert model.features(paddle.randn([2, 3, 16, 8])).shape == [2, DIM]


def test_the_pixel_head_is_the_transposed_convolution_whose_weights_it_holds(network):
    x = paddle.randn([2, 16, 36])
    expected = network.lm_head.proj(x.transpose([0, 2, 1]).reshape([2, 36, 4, 4]))
    assert (network.lm_head(x) - expected).abs().max().item() < 1e-6


@pytest.mark.parametrize("width", [8, 5])
def test_both_ways_to_attend_are_the_same_attention(width):
    query, key, value = paddle.randn([2, 3, 4, width]), paddle.randn([2, 6, 4, width]), paddle.randn([2, 6, 4, width])
    expected = F.scaled_dot_product_attention(query, key, value).flatten(2)
    assert (attend(query, key, value) - expected).abs().max().item() < 1e-6


def test_heads_are_as_wide_as_fits_whole():
    attention = Attention(512, 12, pretraining_inits(512, 12))
    assert attention.qkv.weight.shape == [512, 1512] and attention.proj.weight.shape == [504, 512]
    cross = CrossAttention(512, 768, 12, pretraining_inits(512, 12))
    assert attention.q_bias.shape == [504] and cross.kv.weight.shape == [768, 1008]


def test_gradients_reach_every_trained_parameter_and_only_these():
    model = BootMAE(**SIZES)
    pixels, features = model(paddle.randn([2, 3, 16, 16]), orders(2), 11)
    (pixels.square().sum() + features.square().sum()).backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == {"pos_embed", "de_pos_embed"}


def test_features_are_normalised_and_those_of_whole_images(network):
    network.eval()
    features = network.features(paddle.randn([3, 3, 16, 16])).numpy()
    assert features.shape == (3, DIM)
    assert np.allclose(features.mean(1), 0, atol=1e-5) and np.allclose(features.std(1), 1, atol=1e-3)


def test_a_probe_of_fewer_blocks_sees_what_the_whole_encoder_computes_there(network):
    network.eval()
    probe = BootVisionTransformer(**ENCODER | {"depth": 1})
    own = probe.state_dict()
    for key in own.keys() & network.state_dict().keys():
        own[key].set_value(network.state_dict()[key])
    images = paddle.randn([2, 3, 16, 16])
    first_block = network.blocks[0](paddle.concat(network.embed(images), axis=1))
    expected = F.layer_norm(first_block[:, 1:].mean(1), [DIM], epsilon=1e-6)
    assert (probe.forward_features(images) - expected).abs().max().item() < 1e-5


def test_an_image_that_patches_do_not_divide_is_refused():
    with pytest.raises(BadRequest, match="not a multiple of the patch size"):
        registry.create("pretrain", "bootmae_base", img_size=225)
