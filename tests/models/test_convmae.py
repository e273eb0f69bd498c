"""ConvMAE, FastConvMAE and their classifier beyond the golden numbers."""
import math

import numpy as np
import paddle
import pytest

from ppssl.engine.weights import assign, assign_all
from ppssl.errors import BadRequest
from ppssl.models import registry
from ppssl.models.convmae import MaskedAutoencoderConvViT
from ppssl.models.convvit import ConvViT, stage_sizes
from ppssl.models.fastconvmae import FastConvMAE, count_views
from ppssl.models.masking import patchify, random_masking
from tests.models import dense
from tests.models.dense import relative
from tests.models.test_mae import uniform_within

SIZES = dict(img_size=32, patch_size=[2, 2, 2], embed_dim=[8, 12, 16], depth=[1, 2, 1], num_heads=2,
             mlp_ratio=[2, 3, 4])
DECODER = dict(decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)


def pretraining(kind=MaskedAutoencoderConvViT, **kwargs):
    paddle.seed(0)
    return kind(**SIZES | DECODER | kwargs)


def gradients(model) -> dict[str, np.ndarray]:
    found = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    model.clear_gradients()
    return found


# ---- the encoder

@pytest.mark.parametrize("size, patches, ratio", [
    (32, [2, 2, 2], 0.75), ((24, 40), [2, 2, 2], 0.4), ((16, 8), [1, 2, 2], 0.75), ((36, 24), [2, 2, 3], 0.5),
    ((24, 12), [1, 3, 1], 0.6)])
def test_visible_tokens_alone_give_what_masked_maps_give_and_so_do_the_gradients(size, patches, ratio):
    model = pretraining(img_size=size, patch_size=patches)
    images, noise = paddle.randn([3, 3, *model.img_size]), paddle.rand([3, model.num_patches])
    ids_keep, mask, _ = random_masking(noise, ratio)
    direction, found = None, []
    for compute in (lambda: model.forward_encoder(images, noise, ratio)[0],
                    lambda: dense.latent(model, images, ids_keep, mask)):
        latent = compute()
        direction = paddle.randn(latent.shape) if direction is None else direction
        (latent * direction).sum().backward()
        found.append({"latent": latent.numpy()} | gradients(model))
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    worst = {k: relative(ours[k], theirs[k]) for k in theirs if not k.endswith("qkv.bias")}
    assert max(worst.values()) < 2e-5, max(worst, key=worst.get)


def test_hidden_pixels_reach_nothing_that_is_visible():
    model = pretraining()
    model.eval()
    images, noise = paddle.randn([2, 3, 32, 32]), paddle.rand([2, 16])
    latent, mask, _ = model.forward_encoder(images, noise, 0.5)
    hidden = mask.reshape([2, 1, 4, 4]).repeat_interleave(8, axis=2).repeat_interleave(8, axis=3)
    other, _, _ = model.forward_encoder(images + 10 * hidden * paddle.randn(images.shape), noise, 0.5)
    assert (latent == other).all() and not (images * hidden == 0).all()


@pytest.mark.parametrize("given, patches, sizes", [
    (224, (4, 2, 2), [(224, 224), (56, 56), (28, 28)]), ([224, 56, 28], (4, 2, 2), [(224, 224), (56, 56), (28, 28)]),
    ((64, 96), (4, 2, 2), [(64, 96), (16, 24), (8, 12)]), (32, (1, 2, 2), [(32, 32), (32, 32), (16, 16)])])
def test_one_image_size_gives_the_size_of_every_stage(given, patches, sizes):
    assert stage_sizes(given, patches) == sizes


@pytest.mark.parametrize("given, said", [
    (200, "200x200 is not a multiple of the total stride 16"), ((224, 100), "224x100 is not a multiple"),
    ([224, 56, 14], "do not follow")])
def test_sizes_that_cannot_be_are_refused(given, said):
    with pytest.raises(BadRequest, match=said):
        stage_sizes(given, (4, 2, 2))


def test_an_image_of_another_size_is_refused_with_the_fix():
    with pytest.raises(BadRequest, match="--input_size"):
        pretraining()(paddle.randn([1, 3, 48, 48]))


# ---- initialisation

@pytest.mark.parametrize("name, bound", [
    ("patch_embed1.proj.weight", 1 / math.sqrt(12)), ("patch_embed2.proj.bias", 1 / math.sqrt(256)),
    ("blocks1.0.attn.weight", 1 / 5), ("blocks1.0.attn.bias", 1 / 5), ("blocks2.1.conv1.weight", 1 / math.sqrt(96)),
    ("blocks2.0.mlp.fc2.weight", 1 / math.sqrt(288)), ("stage1_output_decode.weight", 1 / math.sqrt(16 * 64)),
    ("patch_embed3.proj.weight", math.sqrt(6 / (4 * 96 + 128))), ("patch_embed3.proj.bias", 1 / math.sqrt(4 * 96)),
    ("patch_embed4.weight", math.sqrt(6 / 256)), ("blocks3.0.mlp.fc1.weight", math.sqrt(6 / (128 + 512))),
    ("decoder_pred.weight", math.sqrt(6 / (64 + 192)))])
def test_convolutions_start_as_pytorch_has_them_and_matrices_xavier_uniform(name, bound):
    model = pretraining(embed_dim=[64, 96, 128], mlp_ratio=[4, 3, 4], decoder_embed_dim=64)
    assert uniform_within(model.state_dict()[name].numpy(), bound)


def test_the_classifier_starts_with_normal_matrices_default_convolutions_and_a_trainable_table():
    paddle.seed(0)
    model = ConvViT(**SIZES | {"embed_dim": [64, 96, 128]})
    assert uniform_within(model.patch_embed3.proj.weight.numpy(), 1 / math.sqrt(4 * 96))
    assert 0.019 < model.blocks3[0].mlp.fc1.weight.numpy().std() < 0.021
    assert 0.018 < model.pos_embed.numpy().std() < 0.022
    assert model.pos_embed.trainable and not model.head.bias.numpy().any()


def test_only_the_position_tables_are_fixed():
    assert {n for n, p in pretraining().named_parameters() if not p.trainable} == {"pos_embed", "decoder_pos_embed"}


# ---- complementary views

@pytest.mark.parametrize("ratio, views", [(0.75, 4), (0.5, 2), (0.875, 8)])
def test_each_view_is_what_convmae_makes_of_it(ratio, views):
    model = pretraining(FastConvMAE, norm_pix_loss=True)
    images, noise = paddle.randn([3, 3, 32, 32]), paddle.rand([3, 16])
    loss, pred, mask = model(images, noise, ratio)
    single = pretraining(norm_pix_loss=True)
    rank, losses = noise.argsort(1).argsort(1), []
    for view in range(views):
        shifted = ((rank - view * (16 // views)) % 16).astype("float32")
        one, its_pred, its_mask = single(images, shifted, ratio)
        part = slice(3 * view, 3 * view + 3)
        assert (mask[part] == its_mask).all() and relative(pred[part].numpy(), its_pred.numpy()) < 1e-5
        losses.append(one.item())
    assert pred.shape == [3 * views, 16, 192] and loss.item() == pytest.approx(np.mean(losses), rel=1e-6)
    assert (mask.reshape([views, 3, 16]).sum(0) == views - 1).all()                            # each patch visible once


def test_rectangles_are_parted_too():
    _, pred, mask = pretraining(FastConvMAE, img_size=(24, 32))(paddle.randn([2, 3, 24, 32]), mask_ratio=2 / 3)
    assert pred.shape == [6, 12, 192] and mask.sum(1).tolist() == [8.0] * 6


@pytest.mark.parametrize("patches, ratio, views", [
    (196, 0.75, 4), (196, 0.5, 2), (196, 0.857143, 7), (64, 0.9375, 16), (12, 0.6666667, 3)])
def test_possible_ratios_give_their_number_of_views(patches, ratio, views):
    assert count_views(patches, ratio) == views


@pytest.mark.parametrize("patches, ratio, said", [
    (196, 0.7, "the nearest is 0.75"), (196, 0.6, "the nearest is 0.5"), (196, 0.0, "the nearest is 0.5"),
    (81, 0.75, "the nearest is 0.666667"), (1, 0.75, "larger --input_size")])
def test_ratios_that_leave_a_rest_are_refused_with_the_nearest(patches, ratio, said):
    with pytest.raises(BadRequest, match=said) as refusal:
        count_views(patches, ratio)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("source, target", [
    (FastConvMAE, MaskedAutoencoderConvViT), (MaskedAutoencoderConvViT, FastConvMAE)])
def test_each_ones_checkpoint_is_the_others(source, target):
    state, model = pretraining(source).state_dict(), pretraining(target)
    assert list(state) == list(model.state_dict())
    assign_all(model, {k: v.numpy() + 1 for k, v in state.items()})
    assert all((model.state_dict()[k] == v + 1).all() for k, v in state.items())


def test_the_decoder_takes_its_own_mlp_ratio_or_the_first():
    assert pretraining().decoder_blocks[0].mlp.fc1.weight.shape == [8, 16]
    assert pretraining(decoder_mlp_ratio=5).decoder_blocks[0].mlp.fc1.weight.shape == [8, 40]
    assert len(pretraining(FastConvMAE, decoder_depth=2).decoder_blocks) == 2


# ---- what is made of an image

@pytest.mark.parametrize("name", ["convmae_convvit_tiny_patch4", "fastconvmae_convvit_tiny_patch4"])
def test_features_do_not_depend_on_chance_and_are_the_new_classifiers(name):
    model, images = registry.create("pretrain", name), paddle.randn([2, 3, 32, 32])
    probe = registry.create("classifier", "convvit_tiny_patch4")
    assign(probe, {k: v.numpy() for k, v in model.state_dict().items()})
    model.eval(), probe.eval()
    features = model.features(images).numpy()
    assert features.shape == (2, 128) and relative(probe.forward_features(images).numpy(), features) < 1e-5


def test_predictions_go_back_into_an_image():
    model, images = pretraining(img_size=(16, 24)), paddle.randn([2, 3, 16, 24])
    assert (model.to_image(patchify(images, (8, 8))) == images).all()


def test_the_head_sees_the_mean_token_the_first_or_the_mean_of_the_others():
    images, seen = paddle.randn([2, 3, 32, 32]), {}
    for name, kwargs in {"mean": {}, "first": {"global_pool": False}, "others": {"skip_first": True}}.items():
        paddle.seed(0)
        model = ConvViT(**SIZES, **kwargs)
        model.eval()
        tokens = model.encode(images, *model.all_visible(2), model.pos_embed)[2]
        seen[name] = model.forward_features(images), tokens, getattr(model, "fc_norm", None) or model.norm
    pools = {"mean": lambda x: x.mean(1), "first": lambda x: x[:, 0], "others": lambda x: x[:, 1:].mean(1)}
    for name, pool in pools.items():
        features, tokens, norm = seen[name]
        assert relative(features.numpy(), norm(pool(tokens)).numpy()) < 1e-5


def test_drop_path_takes_both_kinds_of_block_in_order():
    paddle.seed(0)
    model = ConvViT(**SIZES, drop_path_rate=0.4)
    blocks = (*model.blocks1, *model.blocks2, *model.blocks3)
    assert [b.drop_path for b in blocks] == pytest.approx([0, 0.4 / 3, 0.8 / 3, 0.4]) and model.num_blocks == 4
    images = paddle.randn([2, 3, 32, 32])
    keep, drop = paddle.ones([2, 4, 2]), paddle.zeros([2, 4, 2])
    kept, dropped, mixed = (model.forward_features(images, noise).numpy()
                            for noise in (keep, drop, paddle.stack([keep[0], drop[0]])))
    assert relative(mixed, np.stack([kept[0], dropped[1]])) < 1e-5 and relative(kept, dropped) > 1e-3


def test_layers_before_stage_three_learn_at_the_lowest_rate():
    model = ConvViT(**SIZES | {"depth": [1, 2, 3]})
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    before = ("pos_embed", "patch_embed", "blocks1", "blocks2")
    assert {layer for name, layer in layers.items() if name.startswith(before)} == {0}
    assert [layers[f"blocks3.{i}.norm1.weight"] for i in range(3)] == [1, 2, 3]
    assert layers["head.weight"] == layers["fc_norm.bias"] == model.num_layers == 4
