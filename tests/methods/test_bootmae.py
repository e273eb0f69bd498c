"""BootMAE's pretraining, finetuning and probing: requests, files, runs."""
import shlex

import numpy as np
import paddle
import pytest

from convert.formats import save_torch
from convert.layout import relayout, transposed_keys
from ppssl import cli, config
from ppssl.config import Size
from ppssl.data.loader import collate
from ppssl.data.transforms import IMAGENET_MEAN
from ppssl.engine import checkpoint
from ppssl.engine.loop import Plan, Progress, train
from ppssl.errors import BadRequest
from ppssl.methods.boot_finetune import BootFinetune
from ppssl.methods.boot_linprobe import BootLinearProbe
from ppssl.methods.boot_load import chosen_keys
from ppssl.methods.bootmae import BootMAE, feature_errors, normalized_patches, patch_weights
from ppssl.models.boot_vit import BootVisionTransformer
from ppssl.models.bootmae import BootMAE as Network
from ppssl.optim.schedules import Clock
from tests.pictures import image_folder

PUBLISHED = {                                             # recipe: (task, the official command)
    "bootmae_base_pretrain": (
        "pretrain", "--model bootmae_base --model_ema --model_ema_decay 0.999 --model_ema_dynamic --batch_size 256 "
        "--lr 1.5e-4 --min_lr 1e-4 --epochs 801 --warmup_epochs 40 --update_freq 1 --mask_num 147 --feature_weight 1 "
        "--weight_mask"),
    "bootmae_base_finetune": (
        "finetune", "--model bootmae_base --input_size 224 --finetune CKPT --num_workers 8 --batch_size 256 --lr 5e-3 "
        "--update_freq 1 --warmup_epochs 20 --epochs 100 --layer_decay 0.6 --backbone_decay 1 --drop_path 0.1 "
        "--abs_pos_emb --disable_rel_pos_bias --weight_decay 0.05 --mixup 0.8 --cutmix 1.0 --nb_classes 1000 "
        "--model_key model --enable_deepspeed --model_ema --model_ema_decay 0.9998"),
    "bootmae_base_linprobe": (
        "linprobe", "--batch_size 1024 --accum_iter 2 --model base_patch16_224 --depth 9 --finetune CKPT --global_pool "
        "--epochs 90 --blr 0.1 --weight_decay 0.0 --dist_eval"),
    "bootmae_large_pretrain": (
        "pretrain", "--model bootmae_large --model_ema --model_ema_decay 0.999 --batch_size 128 --lr 1.5e-4 "
        "--epochs 801 --warmup_epochs 40 --update_freq 1 --mask_num 147 --feature_weight 1 --weight_mask"),
}
ENCODER = dict(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
SETTINGS = {"input_size": Size(16), "mask_num": 11.0, "num_mask_patches": 8, "min_mask_patches_per_block": 2,
            "max_mask_patches_per_block": 6, "feature_weight": 1.0, "model_ema": True, "model_ema_decay": 0.9,
            "weight_mask": True, "batch_size": 4, "lr": 0.32, "warmup_epochs": 0, "epochs": 2}
MASKED = ["--mask_num", "12", "--num_mask_patches", "8", "--min_mask_patches_per_block", "2",
          "--max_mask_patches_per_block", "6", "--feature_weight", "1", "--model_ema", "--weight_mask"]


def network(seed: int = 0, **kwargs) -> Network:
    paddle.seed(seed)
    return Network(**ENCODER | dict(decode_dim=12, decoder_depth=1, fea_list=(0, 1)) | kwargs)


def pretraining(seed: int = 0, **values) -> BootMAE:
    return BootMAE(config.build("pretrain", BootMAE, "bootmae_tiny_patch4", SETTINGS | values), network(seed))


def classifier(**kwargs) -> BootVisionTransformer:
    return BootVisionTransformer(**ENCODER | {"num_classes": 3} | kwargs)


def finetuning(model=None, **values) -> BootFinetune:
    settings = config.build("finetune", BootFinetune, "bootmae_tiny_patch4", BootFinetune.defaults | values)
    return BootFinetune(settings, model or classifier())


class Batches:
    """A loader over samples of random images, the same in every epoch."""

    def __init__(self, method: BootMAE, count: int = 4, size: int = 4):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count * size, 16, 16, 3), dtype=np.uint8)
        whole = collate([method.sample(image, 0, rng) for image in images])
        self.arrays = {k: a.reshape(count, size, *a.shape[1:]) for k, a in whole.items()}

    def split(self) -> "Batches":
        """The same samples in twice as many batches of half the size."""
        halves = object.__new__(Batches)
        halves.arrays = {k: a.reshape(-1, a.shape[1] // 2, *a.shape[2:]) for k, a in self.arrays.items()}
        return halves

    def __len__(self):
        return len(self.arrays["image"])

    def epoch(self, epoch, first=0):
        for i in range(first, len(self)):
            yield {k: paddle.to_tensor(a[i]) for k, a in self.arrays.items()}


def run(method, batches, **plan):
    return list(train(method, method.build_optimizer(), batches, Plan(method.config.train.epochs, **plan), Progress()))


def weights(method) -> dict[str, np.ndarray]:
    sections = {name: layer.state_dict() for name, layer in method.layers().items()}
    return {f"{name}.{k}": v.numpy() for name, state in sections.items() for k, v in state.items()}


# ---- requests

@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_published_commands_are_accepted_unchanged_and_mean_what_their_recipe_says(recipe):
    task, command = PUBLISHED[recipe]
    common = ["--data_path", "DATA", "--output_dir", "OUT"]
    own = {"pretrain": "", "linprobe": "--finetune CKPT",
           "finetune": "--finetune CKPT --num_workers 8 --nb_classes 1000"}
    given = config.parse(task, shlex.split(command) + common)
    stored = config.parse(task, ["-c", f"bootmae/{recipe}", *common, *shlex.split(own[task])])
    assert given.flat() | {"model": ""} == stored.flat() | {"model": ""} and given.method == "bootmae"


@pytest.mark.parametrize("recipe, world, effective, lr", [
    ("bootmae_base_pretrain", 16, 4096, 2.4e-3), ("bootmae_large_pretrain", 16, 2048, 1.2e-3),
    ("bootmae_base_finetune", 8, 2048, 5e-3), ("bootmae_large_finetune", 8, 1024, 1.5e-3),
    ("bootmae_base_linprobe", 8, 16384, 6.4), ("bootmae_large_linprobe", 8, 16384, 4.48)])
def test_the_recipes_train_at_the_published_batch_and_rate(recipe, world, effective, lr):
    from ppssl.methods import get

    request = config.parse(recipe.rsplit("_", 1)[1], ["-c", f"bootmae/{recipe}", "--data_path", "DATA"])
    model = network(img_size=32, patch_size=2) if request.task == "pretrain" else classifier()
    resolved = get(request.task, request.method)(request, model, world=world)
    assert request.train.batch_size * request.train.accum_iter * world == effective
    assert resolved.peak_lr == pytest.approx(lr)


def test_flags_that_do_nothing_are_accepted_with_a_note():
    request = config.parse("finetune", shlex.split(PUBLISHED["bootmae_base_finetune"][1]))
    noted = {note.split()[0] for note in request.notes}
    assert noted == {"--enable_deepspeed", "--abs_pos_emb", "--disable_rel_pos_bias"}
    with pytest.raises(BadRequest, match="unknown flag --abs_pos_emb"):
        config.parse("finetune", ["--model", "vit_base_patch16", "--abs_pos_emb"])


def test_a_run_started_again_takes_itself_up_as_the_official_scripts_do():
    assert config.parse("pretrain", ["--model", "bootmae_base"]).run.resume == "auto"
    assert config.parse("linprobe", ["--model", "base_patch16_224"]).run.resume == ""


def test_the_demo_recipe_is_the_tiny_model():
    request = config.parse("pretrain", ["-c", "bootmae/demo_pretrain"])
    assert (request.method, request.model, request.data.data_path) == ("bootmae", "bootmae_tiny_patch4", "demo")
    assert BootMAE(request).model.num_patches == 64


@pytest.mark.parametrize("values, said", [
    ({"feature_weight": 0.0}, "--feature_weight must be positive"), ({"model_ema": False}, "add --model_ema"),
    ({"mask_num": 17.0}, "--mask_num 17 of 16 patches: give 1 to 16"), ({"mask_num": 0.0}, "--mask_num 0 of 16"),
    ({"num_mask_patches": 17}, "17 patches cannot be masked in a grid of 4x4: lower --num_mask_patches"),
    ({"lr_scheduler": "poly"}, "must be cos or step"), ({"lr_scheduler": "step", "epochs": 99}, "needs 100 epochs")])
def test_what_cannot_be_trained_is_refused_with_the_fix(values, said):
    with pytest.raises(BadRequest, match=said):
        pretraining(**values)


@pytest.mark.parametrize("task, flags, said", [
    ("pretrain", ["--model", "bootmae_tiny_patch4"], "--feature_weight"),
    ("pretrain", ["--model", "bootmae_tiny_patch4", "--input_size", "30"], "not a multiple of the patch size"),
    ("linprobe", ["--model", "bootmae_tiny_patch4", "--input_size", "32", "--depth", "5"],
     "--depth 5 of bootmae_tiny_patch4, which has 4 blocks: give 1 to 4"),
    ("finetune", ["--model", "bootmae_tiny_patch4", "--blr", "5e-4"], "give --lr, not --blr")])
def test_a_bad_command_ends_in_one_line_before_anything_is_trained(task, flags, said, tmp_path, capsys):
    common = ["--device", "cpu", "--batch_size", "2", "--output_dir", str(tmp_path / "out"), "--data_path"]
    assert cli.main(task, [*flags, *common, str(image_folder(tmp_path / "data", per_class=2))]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


# ---- pretraining

def test_training_lowers_both_losses():
    method = pretraining(epochs=12, feature_weight=1.0)
    micros = run(method, Batches(method))
    for name in ("pixel_loss", "feature_loss"):
        losses = [m.stats[name].item() for m in micros]
        assert np.mean(losses[-8:]) < 0.96 * np.mean(losses[:8]), name


def test_accumulated_micro_batches_equal_the_large_batch():
    whole, halves = pretraining(lr=0.032), pretraining(lr=0.032 * 2, batch_size=2, accum_iter=2)
    halves.peak_lr = whole.peak_lr
    batches = Batches(whole)
    run(whole, batches)
    run(halves, batches.split(), accum_iter=2)
    ours, theirs = weights(whole), weights(halves)
    assert max(np.abs(ours[k] - theirs[k]).max() for k in ours) < 2e-6


def test_the_teacher_starts_as_the_network_and_follows_it_at_the_epochs_decay():
    method = pretraining()
    own, teacher = method.model.norm.weight, method.teacher.network.norm.weight
    assert (own == teacher).all()
    own.set_value(own + 1)
    method.after_step(Clock(epoch=50, batch=0, batches=1, step=0))
    decay = 0.9 + 0.5 * 0.0999
    assert np.allclose(teacher.numpy(), decay + (1 - decay) * 2, atol=1e-6)


def test_a_sample_depends_on_its_generator_alone():
    method, image = pretraining(), np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    first, again, other = (method.sample(image, 0, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert all(not np.array_equal(first[k], other[k]) for k in ("image", "blocks", "noise"))
    assert first["image"].shape == (16, 16, 3) and first["blocks"].sum() == 8 and first["noise"].shape == (16,)


def test_every_roll_from_0_to_3_is_drawn_alike():
    method, image, rng = pretraining(), np.zeros((16, 16, 3), np.uint8), np.random.default_rng(0)
    counts = np.bincount([method.sample(image, 0, rng)["roll"] for _ in range(400)])
    assert len(counts) == 4 and counts.min() > 60


def test_weights_favour_the_middle_of_what_is_hidden_and_are_zero_elsewhere():
    order = paddle.to_tensor([[15, *range(15)]])          # all but the last corner hidden
    plain, weighted = (patch_weights(order, 15, (4, 4), favour).reshape([4, 4]).numpy() for favour in (False, True))
    assert plain.sum() == 15 and plain[3, 3] == weighted[3, 3] == 0 and weighted[1, 1] == 2
    assert np.allclose([weighted[0, 0], weighted[0, 1], weighted[2, 2]], [1 + 4 / 9, 1 + 6 / 9, 1 + 8 / 9])


def test_the_pixel_target_is_normalised_per_patch_and_channel():
    images = paddle.randn([2, 3, 8, 8]) * paddle.to_tensor([1.0, 5.0, 9.0]).reshape([1, 3, 1, 1]) + 3
    target = normalized_patches(images, (4, 4)).numpy()
    assert target.shape == (2, 4, 3, 16)
    assert np.allclose(target.mean(-1), 0, atol=1e-5) and np.allclose(target.std(-1), 1, atol=1e-3)


def test_features_are_compared_whatever_their_scale_and_shift():
    a, b = paddle.randn([2, 5, 16]), paddle.randn([2, 5, 16])
    assert np.allclose(feature_errors(a, b), feature_errors(3 * a + 2, b - 1), atol=1e-4)
    assert feature_errors(a, 2 * a).max().item() < 1e-9


def test_only_vectors_and_the_cls_token_are_spared_the_weight_decay():
    groups = pretraining().build_optimizer().groups
    free = {name for g in groups if not g.weight_decay for name, _ in g.params}
    assert "cls_token" in free and {"mask_token", "mask_token_1", "lm_head.proj.weight"}.isdisjoint(free)


def test_images_are_normalised_to_minus_one_to_one_unless_imagenets_statistics_are_asked_for():
    white = {"image": paddle.full([1, 16, 16, 3], 255, "uint8")}
    assert pretraining().images(white).max().item() == 1.0
    other = pretraining(imagenet_default_mean_and_std=True)
    assert other.mean == IMAGENET_MEAN and other.images(white).max().item() > 2


def test_the_picture_shows_what_was_hidden():
    method = pretraining()
    batch = next(Batches(method).epoch(0))
    pixels, mask, normalised = method.reconstruct(batch)
    assert pixels.shape == [4, 3, 16, 16] and mask.sum(1).tolist() == [11.0] * 4 and normalised


# ---- classifiers

def official_file(path, state: dict, section: str | None = "model") -> str:
    save_torch(path, {section: state, "epoch": 7} if section else state)
    return str(path)


def official_state(model) -> dict[str, np.ndarray]:
    return relayout({k: v.numpy() for k, v in model.state_dict().items()}, transposed_keys(model))


@pytest.mark.parametrize("global_pool, new", [(True, "fc_norm.weight"), (False, "head.weight")])
def test_the_encoder_of_a_pretraining_file_is_taken_and_the_rest_named(global_pool, new, tmp_path):
    pretrained, model = network(), classifier(global_pool=global_pool)
    said = "\n".join(finetuning(model).load(official_file(tmp_path / "p.pth", official_state(pretrained))))
    dropped = said.split("dropped (")[1].split(")")[0].split(", ")
    assert new in said and "lm_head_1" in dropped and ("norm" in dropped) == global_pool
    for key in ("cls_token", "blocks.1.attn.q_bias", "blocks.0.mlp.fc2.weight", "patch_embed.proj.weight"):
        assert (model.state_dict()[key] == pretrained.state_dict()[key]).all()
    assert global_pool or (model.norm.bias == pretrained.norm.bias).all()


def test_the_teacher_is_taken_where_its_section_is_asked_for_from_official_files_and_own_checkpoints(tmp_path):
    method = pretraining()
    run(method, Batches(method))
    checkpoint.save(tmp_path / "own", method, method.build_optimizer(), Progress(), None, world=1)
    sections = {"model": official_state(method.model), "model_ema": official_state(method.teacher.network)}
    save_torch(tmp_path / "theirs.pth", sections)
    for file in ("own", "theirs.pth"):
        for key, source in (("model|module", method.model), ("model_ema", method.teacher.network)):
            tuned = finetuning(model_key=key)
            tuned.load(str(tmp_path / file))
            assert (tuned.model.blocks[1].mlp.fc1.weight == source.blocks[1].mlp.fc1.weight).all(), (file, key)


def test_prefixes_are_taken_off_and_of_marked_keys_only_the_marked_are_taken(tmp_path):
    assert chosen_keys(["a.b", "c"]) == {"a.b": "a.b", "c": "c"}
    assert chosen_keys(["encoder.a", "b"]) == {"a": "encoder.a"}
    assert chosen_keys(["visual.a", "b"], "visual.") == {"a": "visual.a"}
    pretrained, tuned = network(), finetuning(model_prefix="visual.")
    state = {f"visual.{k}": v for k, v in official_state(pretrained).items()}
    tuned.load(official_file(tmp_path / "p.pth", state, section=None))
    assert (tuned.model.blocks[0].attn.qkv.weight == pretrained.blocks[0].attn.qkv.weight).all()


def test_a_head_of_as_many_classes_is_kept_and_one_of_others_started_anew(tmp_path):
    trained = classifier()
    trained.head.weight.set_value(paddle.ones([16, 3]))
    path = official_file(tmp_path / "p.pth", official_state(trained))
    same, other = (finetuning(classifier(num_classes=n), finetune=path, init_scale=0.5) for n in (3, 5))
    for method in (same, other):
        method.prepare()
    assert (same.model.head.weight == 1).all() and 0.005 < other.model.head.weight.numpy().std() < 0.02


def test_a_file_of_another_size_is_refused_with_the_fix(tmp_path):
    path = official_file(tmp_path / "p.pth", official_state(network(embed_dim=24)))
    with pytest.raises(BadRequest, match="is of another size.*choose the --model"):
        finetuning().load(path)


def test_layers_learn_slower_the_earlier_they_are_and_backbone_decay_spares_the_head():
    groups = finetuning(layer_decay=0.5, backbone_decay=0.1).groups()
    scales = {name: g.lr_scale for g in groups for name, _ in g.params}
    assert [scales[k] for k in ("cls_token", "blocks.0.norm1.bias", "blocks.1.attn.qkv.weight")] == pytest.approx(
        [0.0125, 0.025, 0.05])
    assert scales["fc_norm.weight"] == scales["head.bias"] == 1.0 and "pos_embed" not in scales
    alike = finetuning(layer_decay=1.0, backbone_decay=0.1).groups()
    assert [g.lr_scale for g in alike] == [1.0, 1.0]


@pytest.mark.parametrize("size, resized", [(224, 256), (288, 329), (384, 384)])
def test_evaluation_crops_below_384_pixels_only(size, resized):
    method = finetuning(input_size=Size(size))
    assert method.eval_transform.resize_to == resized and method.transform.fill == (128, 128, 128)


def test_a_probe_keeps_the_first_blocks_and_says_what_it_leaves_out(tmp_path):
    pretrained, model = network(depth=3, fea_list=(0, 2)), classifier()
    settings = config.build("linprobe", BootLinearProbe, "bootmae_tiny_patch4", {"lr": 0.1})
    said = BootLinearProbe(settings, model).load(official_file(tmp_path / "p.pth", official_state(pretrained)))
    assert said[-1] == "  13 tensors beyond block 2 left out"
    assert (model.blocks[1].mlp.fc2.weight == pretrained.blocks[1].mlp.fc2.weight).all()


def test_the_default_depth_is_12_or_all_of_a_smaller_model():
    request = config.parse("linprobe", ["--model", "bootmae_tiny_patch4", "--input_size", "32"])
    assert BootLinearProbe(request).model.num_blocks == 4
    assert config.parse("linprobe", ["--model", "large_patch16_224"]).options.depth is None


def test_the_tiny_model_trains_finetunes_and_probes_from_the_command_line(tmp_path, capsys):
    common = ["--model", "bootmae_tiny_patch4", "--input_size", "16", "--batch_size", "4", "--num_workers", "0",
              "--epochs", "1", "--warmup_epochs", "0", "--device", "cpu", "--data_path",
              str(image_folder(tmp_path / "data", per_class=4)), "--output_dir"]
    assert cli.main("pretrain", [*common, str(tmp_path / "pre"), *MASKED]) == 0
    encoder = ["--finetune", str(checkpoint.found(tmp_path / "pre")[-1])]
    teacher = ["--model_key", "model_ema", "--mixup", "0.8", "--model_ema"]
    assert cli.main("finetune", [*common, str(tmp_path / "ft"), *encoder, *teacher]) == 0
    assert cli.main("linprobe", [*common, str(tmp_path / "lp"), *encoder, "--global_pool", "--depth", "2"]) == 0
    assert cli.main("finetune", [*common, str(tmp_path / "ft"), "--eval"]) == 0
    assert cli.main("finetune", [*common, str(tmp_path / "none"), *encoder, "--eval"]) == 0
    said = capsys.readouterr().out
    assert said.count("holds no head.weight, head.bias for these classes: what follows is the accuracy of a head at random") == 1
    assert said.count("encoder loaded") == 3 and "ema_acc1" in said and said.count("[Eval] ") == 2 and "26 tensors beyond block 2 left out" in said
