"""TEC's networks beyond the golden numbers: initialisation, sizes, the quirks that no number shows, folding."""
import math

import numpy as np
import paddle
import pytest

from convert.layout import relayout, transposed_keys
from ppssl.errors import BadRequest
from ppssl.models import registry
from ppssl.models.tec import TECViT, attention_loss, feature_loss, fold_token_mlp, normalize_channels
from ppssl.models.tec_base import BaseModel
from ppssl.models.vit import TECVisionTransformer, VisionTransformer

SIZES = dict(img_size=16, patch_size=4, embed_dim=48, depth=4, num_heads=4)


def new_model(seed: int = 0, **kwargs) -> TECViT:
    paddle.seed(seed)
    return TECViT(**SIZES | dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2, num_adap=2, mlp_token=True,
                                 pred_att=True) | kwargs)


def base_model(**kwargs) -> BaseModel:
    paddle.seed(7)
    return BaseModel(**SIZES | kwargs)


def images(*size: int):
    return paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32))


def losses(model, base, size=(16, 16), topk=3) -> dict[str, float]:
    noise = paddle.to_tensor(np.random.default_rng(1).random((2, model.num_patches), np.float32))
    out = model(images(*size), noise, 0.75, base.targets(images(*size), 2, topk))
    return {name: value.item() for name, value in out.items()}


@pytest.mark.parametrize("name, fan_in, fan_out", [
    ("cls_token_mlp.fc1.weight", 48, 192), ("encoder_adaptor.fuse_fcs.1.weight", 96, 48),
    ("encoder_adaptor.adap_mlps.0.fc1.weight", 48, 128), ("forward_fea_decoder.decoder_pred.weight", 32, 48),
    ("forward_att_decoder.decoder_qk.weight", 32, 96), ("decoder_blocks.0.attn.qkv.weight", 32, 96)])
def test_matrices_start_xavier_uniform(name, fan_in, fan_out):
    weight, bound = new_model().state_dict()[name].numpy(), math.sqrt(6 / (fan_in + fan_out))
    assert np.abs(weight).max() <= bound
    assert abs(weight.std() * math.sqrt(3) / bound - 1) < 5 / math.sqrt(weight.size)


def test_biases_start_at_zero_and_tokens_small():
    state = {k: v.numpy() for k, v in new_model().state_dict().items()}
    biases = [v for k, v in state.items() if k.endswith("bias") and not k.startswith("patch_embed")]
    assert not np.concatenate(biases).any()
    tokens = ("cls_token", "forward_fea_decoder.mask_token", "forward_att_decoder.mask_token")
    assert all(0.01 < state[k].std() < 0.03 for k in tokens)


def test_the_adapters_two_norms_alone_have_the_larger_epsilon():
    model = new_model()
    epsilons = {name: layer._epsilon for name, layer in model.named_sublayers() if isinstance(layer, paddle.nn.LayerNorm)}
    larger = {name for name, eps in epsilons.items() if eps == 1e-5}
    assert larger == {"encoder_adaptor.adap_before", "encoder_adaptor.adap_after"}
    assert {eps for name, eps in epsilons.items() if name not in larger} == {1e-6}


def test_only_the_position_tables_are_fixed_and_without_the_options_their_parts_are_absent():
    assert {n for n, p in new_model().named_parameters() if not p.trainable} == {"pos_embed", "decoder_pos_embed"}
    plain = new_model(mlp_token=False, pred_att=False)
    assert not any(k.startswith(("cls_token_mlp", "forward_att_decoder")) for k in plain.state_dict())


def test_without_attention_the_only_loss_is_that_of_the_features():
    assert list(losses(new_model(pred_att=False), base_model(), topk=None)) == ["loss_fea"]
    assert list(losses(new_model(), base_model())) == ["loss_fea", "loss_att"]


@pytest.mark.parametrize("size", [(16, 24), (32, 32)])
def test_other_image_sizes_and_rectangles_work(size):
    assert all(math.isfinite(v) for v in losses(new_model(img_size=size), base_model(img_size=size), size).values())


def test_a_base_model_of_another_width_and_other_heads_is_matched_by_pred_dim():
    base = base_model(embed_dim=24, num_heads=3, depth=2)
    assert len(losses(new_model(pred_dim=24, pred_num_heads=3), base)) == 2


def test_layers_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match="4 layers do not divide into 3 groups"):
        new_model(num_adap=3)


def test_features_are_of_the_whole_image_and_need_no_noise():
    model = new_model()
    model.eval()
    noise = paddle.to_tensor(np.random.default_rng(3).random((2, 16), np.float32))
    levels, _, _ = model.forward_encoder(images(16, 16), noise, 0.0)
    features = model.features(images(16, 16))
    assert features.shape == [2, 48]
    np.testing.assert_allclose(features.numpy(), levels[:, 1:, -48:].mean(1).numpy(), atol=2e-6)


def test_targets_hold_what_is_asked_for_and_no_gradient_reaches_the_base_model():
    base = base_model()
    features, logits, top = base.targets(images(16, 16), 2, 5)
    assert (features.shape, logits.shape, top.shape) == ([2, 16, 48], [2, 6, 4, 16], [2, 5])
    assert features.stop_gradient and not base.training and not any(p.trainable for p in base.parameters())
    assert base.targets(images(16, 16), 1)[1:] == (None, None)


def test_the_picked_patches_are_those_of_the_largest_mean_logit_of_the_cls_token_in_falling_order():
    _, logits, top = base_model().targets(images(16, 16), 2, 16)
    mean = logits[:, 0].mean(1).numpy()
    np.testing.assert_array_equal(top.numpy(), np.argsort(-mean, axis=1))


def test_the_last_blocks_are_averaged_without_the_cls_token():
    base = base_model()
    x, outputs = base.embed(images(16, 16)), []
    for block in base.blocks:
        x = block(x)
        outputs.append(x[:, 1:].numpy())
    for last in (1, 3, 4):
        expected = np.mean(outputs[-last:], axis=0)
        np.testing.assert_allclose(base.targets(images(16, 16), last).features.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_feature_targets_are_normalised_over_the_patches_of_each_channel():
    x = paddle.to_tensor(np.random.default_rng(0).normal(3, 5, (2, 16, 6)).astype(np.float32))
    target = normalize_channels(x).numpy()
    np.testing.assert_allclose(target.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(target.std(1, ddof=1), 1, rtol=1e-5)


def test_losses_are_float32_whatever_the_predictions_are():
    target, pred = paddle.randn([2, 16, 6]).astype("float16"), paddle.randn([2, 16, 6]).astype("float16")
    assert feature_loss(target, pred, paddle.ones([2, 16])).dtype == paddle.float32
    assert attention_loss(target, pred, 1.8).dtype == paddle.float32


def test_visible_patches_do_not_count_in_the_feature_loss():
    target, pred = paddle.randn([1, 4, 6]), paddle.randn([1, 4, 6])
    mask, changed = paddle.to_tensor([[0.0, 1.0, 1.0, 0.0]]), pred.clone()
    changed[:, 0] += 9.0
    assert feature_loss(target, pred, mask).item() == feature_loss(target, changed, mask).item()


def test_the_temperature_is_on_the_target_alone():
    target, pred = paddle.randn([1, 2, 2, 9]), paddle.randn([1, 2, 2, 9])
    cold, warm = attention_loss(target, pred, 1.8), attention_loss(target / 1.8, pred, 1.0)
    np.testing.assert_allclose(cold.item(), warm.item(), rtol=1e-6)


def classifiers() -> tuple[TECVisionTransformer, VisionTransformer]:
    paddle.seed(1)
    kwargs = SIZES | {"num_classes": 5}
    return TECVisionTransformer(mlp_token=True, **kwargs), VisionTransformer(**kwargs)


def test_a_folded_encoder_gives_a_plain_vit_the_same_features():
    tec, plain = classifiers()
    state = relayout({k: v.numpy() for k, v in tec.state_dict().items()}, transposed_keys(tec))
    folded = fold_token_mlp(state)
    assert not any(k.startswith(("cls_token_mlp", "head", "fc_norm")) for k in folded)
    own = plain.state_dict()
    for key, value in relayout(folded, transposed_keys(plain)).items():
        own[key].set_value(np.ascontiguousarray(value))
    tec.eval(), plain.eval()
    expected = tec.forward_features(images(16, 16)).numpy()
    np.testing.assert_allclose(plain.forward_features(images(16, 16)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_folding_leaves_its_input_alone_and_refuses_weights_without_a_token_mlp():
    tec, plain = classifiers()
    state = relayout({k: v.numpy() for k, v in tec.state_dict().items()}, transposed_keys(tec))
    before = state["cls_token"].copy()
    assert (fold_token_mlp(state)["cls_token"] != before).any()
    np.testing.assert_array_equal(state["cls_token"], before)
    with pytest.raises(BadRequest, match="nothing to fold"):
        fold_token_mlp({k: v.numpy() for k, v in plain.state_dict().items()})


def test_tecs_classifier_fixes_its_table_and_lets_the_cls_token_learn_at_the_full_rate():
    tec, plain = classifiers()
    assert not tec.pos_embed.trainable and plain.pos_embed.trainable
    assert tec.layer_of("cls_token") == -1 and plain.layer_of("cls_token") == 0
    assert tec.layer_of("patch_embed.proj.weight") == 0 and tec.layer_of("blocks.2.norm1.weight") == 3
    assert tec.layer_of("cls_token_mlp.fc1.weight") == tec.layer_of("head.weight") == tec.num_layers


def test_maes_classifier_names_give_tecs_network_where_the_token_mlp_is_asked_for():
    assert isinstance(registry.create("classifier", "vit_tiny_patch4", mlp_token=True), TECVisionTransformer)
    assert type(registry.create("classifier", "vit_tiny_patch4")) is VisionTransformer
    assert registry.create("classifier", "tec_vit_tiny_patch4").cls_token_mlp is None
