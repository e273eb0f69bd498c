"""BYOL's pretraining and linear evaluation beyond the golden cases: settings, the official file, resuming, loading."""
import copy

import numpy as np
import paddle
import pytest
import yaml

from convert.formats import Refused, save_torch
from convert.layout import relayout, transposed_keys
from ppssl import config
from ppssl.config import Size, parse
from ppssl.engine import checkpoint
from ppssl.engine.loop import Plan, Progress, train
from ppssl.errors import BadRequest
from ppssl.methods.byol import BYOL
from ppssl.methods.byol_linear import LinearEvaluation, load_backbone
from ppssl.models import registry
from ppssl.models.resnet import torchvision_name
from ppssl.optim.schedules import Clock

OFFICIAL = {
    "model": {"base_momentum": 0.99, "backbone": {"type": "resnet50", "pretrained": False},
              "projection": {"type": "MLP", "input_dim": 2048, "hidden_dim": 4096, "output_dim": 256},
              "predictor": {"type": "MLP", "input_dim": 256, "hidden_dim": 4096, "output_dim": 256}},
    "amp": {"sync_bn": True, "opt_level": "O0"},
    "data": {"use_local_dataloader": True, "image_dir": "IMAGES/", "resize_size": 224, "data_workers": 8, "train_batch_size": 128,
             "val_batch_size": 64, "dual_views": True, "num_examples": 1281167, "train_list": "train.txt", "val_list": "val.txt",
             "endpoint": None, "key_id": None, "secret_id": None, "bucket": None},
    "optimizer": {"type": "lars", "base_lr": 0.3, "momentum": 0.9, "weight_decay": 1e-6, "total_epochs": 300, "warmup_epochs": 10,
                  "exclude_bias_and_bn": True},
    "checkpoint": {"time_stamp": None, "resume_path": None, "save_epoch": 1, "ckpt_prefix": "byol/{}/{}_{}.pth.tar",
                   "ckpt_endpoint": None, "ckpt_key_id": None, "ckpt_secret_id": None, "ckpt_bucket": None},
    "log": {"log_step": 10, "acc_log_file": "a.log", "acc_log_png": "a.png", "loss_log_file": "l.log", "loss_log_png": "l.png",
            "lr_log_file": "r.log", "lr_log_png": "r.png"},
    "stage": "train", "distributed": True}


def official(tmp_path, change=lambda content: None) -> str:
    content = copy.deepcopy(OFFICIAL)
    change(content)
    path = tmp_path / "train_config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def method(seed: int = 0, **values) -> BYOL:
    settings = {"batch_size": 4, "epochs": 2, "warmup_epochs": 0, "lr": 2.0, "input_size": Size(16)} | values
    paddle.seed(seed)
    return BYOL(config.build("pretrain", BYOL, "byol_resnet_tiny", settings))


class Batches:
    """A loader over made-up views, the same in every epoch."""

    def __init__(self, count: int = 4, size: int = 4):
        self.views = np.random.default_rng(0).integers(0, 256, (count, size, 2, 16, 16, 3), np.uint8)

    def __len__(self):
        return len(self.views)

    def epoch(self, epoch, first=0):
        for i in range(first, len(self)):
            yield {"views": paddle.to_tensor(self.views[i])}


def run(trained: BYOL, optimizer, progress: Progress, epochs: int) -> list[float]:
    """Losses of the epochs up to `epochs`."""
    return [m.stats["loss"].item() for m in train(trained, optimizer, Batches(), Plan(epochs, trained.config.train.accum_iter), progress)]


# ---- settings

def test_the_official_file_the_recipe_and_the_flags_mean_the_same(tmp_path):
    from_file = parse("pretrain", ["--config", official(tmp_path)])
    recipe = parse("pretrain", ["-c", "byol/resnet50_pretrain", "--data_path", "IMAGES/", "--save_freq", "1"])
    flags = parse("pretrain", "--model byol_resnet50 --data_path IMAGES/ --batch_size 128 --epochs 300 --warmup_epochs 10 --blr 0.3 "
                  "--weight_decay 1e-6 --momentum 0.9 --base_momentum 0.99 --projection_hidden 4096 --projection_dim 256 "
                  "--prediction_hidden 4096 --num_examples 1281167 --amp none --num_workers 8 --print_freq 10 --save_freq 1".split())
    assert from_file.flat() == recipe.flat() == flags.flat()


def test_the_official_settings_resolve_to_the_published_rates():
    settings = parse("pretrain", ["-c", "byol/resnet50_pretrain"])
    trained = BYOL(settings, registry.create("pretrain", "byol_resnet_tiny"), world=32)
    first, peak, last = (trained.rates(Clock(0, 0, 312, step))[0] for step in (0, 3127, 93835))
    assert (trained.peak_lr, first, peak) == (pytest.approx(4.8), pytest.approx(0.0048), pytest.approx(4.8))
    assert last == pytest.approx(0.0179273, rel=1e-5) and trained.target_momentum(Clock(0, 0, 312, 93835)) == 1


def test_what_the_official_file_says_without_effect_is_noted(tmp_path):
    notes = parse("pretrain", ["--config", official(tmp_path)]).notes
    assert "data.train_list" in notes[0] and "storage service" in notes[0]
    assert "data.resize_size" in notes[1] and "IMAGES//train" in notes[2]


@pytest.mark.parametrize("key, value, message", [
    ("model.backbone.type", "resnet51", "did you mean resnet50"),
    ("model.backbone.pretrained", True, "must be False"),
    ("model.projection.input_dim", 512, "must be 2048, not 512"),
    ("model.predictor.output_dim", 128, "must be 256, not 128"),
    ("optimizer.learning_rate", 0.3, "no key optimizer.learning_rate"),
    ("optimizer.base_lr", "fast", "blr must be a number"),
    ("amp.opt_level", "O3", "one of O0, O1"),
    ("data.use_local_dataloader", False, "local folder"),
    ("stage", "val", "main_linprobe.py"),
])
def test_what_the_official_file_cannot_mean_here_is_refused_by_name(tmp_path, key, value, message):
    def change(content):
        *sections, last = key.split(".")
        for section in sections:
            content = content[section]
        content[last] = value
    with pytest.raises(BadRequest, match=message):
        parse("pretrain", ["--config", official(tmp_path, change)])


def test_a_floor_of_the_learning_rate_is_refused():
    with pytest.raises(BadRequest, match="--min_lr"):
        method(min_lr=1e-4)


def test_without_num_examples_the_schedules_span_the_whole_batches_of_the_training_set():
    trained = method(epochs=3, accum_iter=2)
    clock = Clock(epoch=0, batch=0, batches=7, step=10)
    assert trained.target_momentum(clock) == 1 - 0.01 * (np.cos(np.pi) + 1) / 2                    # 3 * 7 micro-batches, 10 steps


# ---- training

def test_a_sample_is_two_different_views_of_the_image():
    image = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    views = method().sample(image, 0, np.random.default_rng(0))["views"]
    assert views.shape == (2, 16, 16, 3) and views.dtype == np.uint8 and (views[0] != views[1]).any()


def test_a_short_training_lowers_the_loss():
    trained = method(epochs=6, base_momentum=0.9)
    losses = run(trained, trained.build_optimizer(), Progress(), 6)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_the_target_moves_once_a_step_however_many_micro_batches_make_it():
    trained, moves = method(accum_iter=2), []
    update = trained.model.update_target
    trained.model.update_target = lambda momentum: (moves.append(momentum), update(momentum))
    run(trained, trained.build_optimizer(), Progress(), 1)
    assert moves == [trained.target_momentum(Clock(0, 0, 4, step)) for step in (0, 1)]


# ---- linear evaluation

@pytest.fixture
def pretrained():
    """A pretraining model whose running statistics are not those of the start, and its official state dict."""
    paddle.seed(0)
    model = registry.create("pretrain", "byol_resnet_tiny")
    model(paddle.randn([8, 3, 16, 16]))
    return model, relayout({k: v.numpy() for k, v in model.state_dict().items()}, transposed_keys(model))


def features_of(model) -> np.ndarray:
    model.eval()
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32))
    return (model.forward_features if hasattr(model, "forward_features") else model.features)(images).numpy()


def encoder(state: dict) -> dict:
    start = "online_network.encoder."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}


FILES = {
    "the authors' training file": lambda s: {"epoch": 3, "steps": 9, "model": s, "amp": {}},
    "the same under DataParallel": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "torchvision": lambda s: {torchvision_name(k): v for k, v in encoder(s).items()} | {"fc.weight": np.ones((5, 128), np.float32)},
    "torchvision of old, without counters": lambda s: {torchvision_name(k): v for k, v in encoder(s).items() if "tracked" not in k},
    "the legacy file": lambda s: {"online_backbone": {f"module.{i}": v for i, v in enumerate(encoder(s).values())}
                                  | {"fc": np.ones(3, np.float32)}},
}


@pytest.mark.parametrize("kind", FILES)
def test_the_encoder_is_found_in_every_official_file(tmp_path, pretrained, kind):
    model, state = pretrained
    save_torch(tmp_path / "file.pth", FILES[kind](state))
    classifier = registry.create("classifier", "resnet_tiny")
    load_backbone(classifier, str(tmp_path / "file.pth"))
    assert np.abs(features_of(classifier) - features_of(model)).max() < 1e-6


def test_an_own_checkpoint_trains_the_linear_layer_alone_and_the_encoder_stays_in_evaluation(tmp_path):
    trained = method()
    checkpoint.save(tmp_path / "c.safetensors", trained, trained.build_optimizer(), Progress(), None, 1)
    values = {"finetune": str(tmp_path / "c.safetensors"), "nb_classes": 3, "batch_size": 4, "epochs": 1, "warmup_epochs": 0, "lr": 0.5}
    probe = LinearEvaluation(config.build("linprobe", LinearEvaluation, "resnet_tiny", values))
    before = {k: v.numpy() for k, v in probe.model.state_dict().items()}
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (3, 4, 16, 16, 3), np.uint8), "label": rng.integers(0, 3, (3, 4))}

    class Loader:
        def __len__(self):
            return 3

        def epoch(self, epoch, first=0):
            return ({k: paddle.to_tensor(v[i]) for k, v in batch.items()} for i in range(3))
    steps = list(train(probe, probe.build_optimizer(), Loader(), Plan(1), Progress()))
    after = {k: v.numpy() for k, v in probe.model.state_dict().items()}
    assert {k for k in after if not np.array_equal(before[k], after[k])} == {"fc.weight", "fc.bias"}
    assert np.abs(features_of(probe.model) - features_of(trained.model)).max() < 1e-6 and len(steps) == 3


def test_a_file_of_another_network_is_refused_with_the_reason(tmp_path, pretrained):
    _, state = pretrained
    save_torch(tmp_path / "small.pth", {"model": state})
    with pytest.raises(BadRequest, match="holds no encoder|another size|does not fit"):
        load_backbone(registry.create("classifier", "resnet18"), str(tmp_path / "small.pth"))
    save_torch(tmp_path / "odd.pth", {"online_backbone": {"a": np.ones((3, 3), np.float32), "b": np.ones(2, np.float32)}})
    with pytest.raises(Refused, match="2 tensors where the model has"):
        load_backbone(registry.create("classifier", "resnet_tiny"), str(tmp_path / "odd.pth"))


def test_the_linear_evaluations_defaults_are_the_published_ones():
    settings = parse("linprobe", ["-c", "byol/resnet50_linprobe"])
    assert settings.method == "byol_linear" and (settings.train.epochs, settings.train.lr, settings.train.weight_decay) == (100, 1.0, 0.0)
    plain = parse("linprobe", ["--model", "resnet50"]).train
    assert (plain.epochs, plain.blr, plain.batch_size, plain.warmup_epochs) == (100, 1.0, 256, 0)
