"""BYOL: heads, LARS, loss and schedules, the whole model, training, the legacy file."""
import copy

import numpy as np
import paddle
from paddle.nn.initializer import Assign

from convert.layout import official_shapes, transposed_keys
from convert.legacy_byol import from_legacy
from convert.optimizer import slots_of, torch_state
from ppssl import config
from ppssl.byol_recipe import translate
from ppssl.data.device import normalize
from ppssl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ppssl.engine.loop import Progress
from ppssl.methods.byol import BYOL
from ppssl.models import registry
from ppssl.models.byol import MLP, BYOLModel, byol_loss
from ppssl.models.resnet import BasicBlock, Bottleneck, ResNet, encoder_of
from ppssl.optim.groups import Group, trainable
from ppssl.optim.lars import LARS, LarsSGD, byol_groups
from ppssl.optim.schedules import Clock, byol_lr, byol_momentum, byol_steps, scale_lr
from tests.golden.adapters.common import finals, gradients, load_official, official_state, run_training, tensor
from tests.golden.case import Case
from tests.golden.runner import Check, compare, same


def heads_mlp(case: Case) -> dict:
    spec = case.spec["kwargs"]
    model = MLP(spec["input_dim"], spec["hidden_dim"], spec["output_dim"])
    load_official(model, official_state(case.file("checkpoint.pth")))
    x = tensor(case.inputs["x"])
    model.eval()
    evaluated = model(x).numpy()
    model.train()
    x.stop_gradient = False
    out = model(x)
    (out * tensor(case.inputs["cotangent"])).sum().backward()
    return gradients(model) | finals(model) | {"out/eval": evaluated, "out/train": out.numpy(), "grad/x": x.grad.numpy()}


def lars(case: Case) -> dict:
    spec = case.spec
    groups = {name: {k.split("/", 2)[2]: v for k, v in case.arrays.items() if k.startswith(f"in/{name}/")} for name in "pg"}
    out = {}
    for name, variant in spec["variants"].items():
        for key, path in descend(variant, groups["p"], groups["g"], spec["lr_per_step"]).items():
            out[f"out/{name}/{key}"] = path
    _, excluded = byol_groups(((k, None) for k in groups["p"]), 0.0, exclude=True)
    return out | {"json/excluded": same(sorted(excluded), sorted(spec["excluded_when_exclude_true"]))}


def descend(variant: dict, start: dict, gradients: dict, rates: list[float]) -> dict[str, np.ndarray]:
    """{name: parameters after each step} of one optimizer; a gradient row of NaN is no gradient."""
    params = {k: paddle.create_parameter(v.shape, "float32", default_initializer=Assign(v)) for k, v in start.items()}
    optimizer = build_lars(dict(variant), list(params.items()))
    path = {k: [] for k in params}
    for i, lr in enumerate(rates):
        optimizer.clear_grad()
        for k, p in params.items():
            if not np.isnan(gradients[k][i]).any():
                (p * tensor(gradients[k][i])).sum().backward()
        optimizer.step(lr)
        for k, p in params.items():
            path[k].append(p.numpy().copy())
    return {k: np.stack(v) for k, v in path.items()}


def build_lars(variant: dict, params: list):
    kind, decay = variant.pop("kind"), variant.pop("weight_decay")
    if kind == "mae":
        return LARS([Group(tuple(params), weight_decay=decay)], trust=variant.pop("trust_coefficient"), **variant)
    if kind != "byol":
        raise ValueError(f"unknown kind of LARS: {kind}")
    groups, excluded = byol_groups(params, decay, variant.pop("exclude"))
    return LarsSGD(groups, excluded=excluded, **variant)


def loss_schedules(case: Case) -> dict:
    q = tensor(case.inputs["q"])
    q.stop_gradient = False
    loss = byol_loss(q, tensor(case.inputs["target_z"]))
    loss.backward()
    out = {"out/loss": loss.numpy(), "grad/q": q.grad.numpy()}
    for i, stated in enumerate(case.spec["schedules"]):
        out |= {f"json/schedules[{i}].{k}": v for k, v in schedule_checks(stated).items()}
    return out


def schedule_checks(stated: dict) -> dict[str, Check]:
    batch = stated["per_gpu_batch"] * stated["world_size"]
    total, warmup = (byol_steps(stated[k], stated["num_examples"], batch) for k in ("total_epochs", "warmup_epochs"))
    peak = scale_lr(stated["base_lr"], stated["per_gpu_batch"], 1, stated["world_size"])
    return {"total_steps": same(total, stated["total_steps"]), "warmup_steps": same(warmup, stated["warmup_steps"]),
            "max_lr": close(peak, stated["max_lr"]),
            "lr": close([byol_lr(t, peak, warmup, total) for t in stated["step"]], stated["lr"]),
            "mm": close([byol_momentum(t, stated["base_momentum"], total) for t in stated["step"]], stated["mm"])}


def close(ours, theirs, bar: float = 1e-12) -> Check:
    """Equal numbers but for the last bits of float64."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    worst, scale = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    return Check(worst <= bar * scale, worst, worst / scale, f"{bar} relative")


def check_normalization(case: Case) -> None:
    if case.spec["normalize"]["mean"] != list(IMAGENET_MEAN) or case.spec["normalize"]["std"] != list(IMAGENET_STD):
        raise ValueError(f"a normalisation this product does not have: {case.spec['normalize']}")


def channels_last(images: np.ndarray) -> np.ndarray:
    """uint8 [..., 3, H, W] -> [..., H, W, 3], as the product's loader gives them."""
    return np.ascontiguousarray(np.moveaxis(images, -3, -1))


def full_size(case: Case) -> dict:
    """Evaluation of the online network on view 1, then one training pass with everything that happens in it."""
    check_normalization(case)
    name, values = flat(case.spec["kwargs"])
    method = BYOL(config.build("pretrain", BYOL, name, values | {"base_momentum": case.spec["mm"]}))
    model, images = method.model, channels_last(case.inputs["images_uint8"])
    out = facts(case, model)
    load_official(model, case.synthetic_weights())
    half = len(images) // 2
    out |= evaluation(model, normalize(tensor(images[:half])))
    views = np.stack([images[:half], images[half:]], axis=1)
    return out | training_pass(case, method, tensor(views))


def flat(nested: dict) -> tuple[str, dict]:
    """(model name, flat keys) of the authors' nested configuration, by the product's own translation."""
    values, _ = translate(nested)
    return values.pop("model"), values


def facts(case: Case, model: BYOLModel) -> dict[str, Check]:
    """Keys, shapes and orders that the case states."""
    own = {k: [list(s), str(model.state_dict()[k].dtype).rsplit(".", 1)[-1]] for k, s in official_shapes(model).items()}
    target = [f"target_network.{k}" for k, _ in model.target_network.named_parameters()]
    return {"json/manifest": same(list(own.items()), list(case.manifest().items())),
            "json/grad_names": same([n for n, _ in trainable(model)], case.spec["grad_names"]),
            "json/target_param_names": same(target, case.spec["target_param_names"])}


@paddle.no_grad()
def evaluation(model: BYOLModel, images) -> dict:
    model.eval()
    out, stats, x = {}, [], images
    for i, child in enumerate(model.online_network.encoder.children()):
        x = child(x)
        a = x.numpy()
        out[f"out/eval_child{i}_slice"] = a[:, :16, a.shape[2] // 2, a.shape[3] // 2]
        stats.append([a.mean(dtype=np.float64), a.std(dtype=np.float64), np.abs(a).max()])
    projection = model.online_network(images)
    return out | {"out/eval_child_stats": np.array(stats), "out/eval_pooled": model.features(images).numpy(),
                  "out/eval_projection": projection.numpy(), "out/eval_prediction": model(images).numpy()}


def training_pass(case: Case, method: BYOL, views) -> dict:
    model = method.model
    method.train_mode()
    with recording(model) as seen:
        loss, _ = method.loss(method.network, {"views": views}, Clock(0, 0, 1, 0))
    loss.backward()
    state = model.state_dict()
    buffers = [k.removeprefix("out/train_bn/") for k in case.arrays if k.startswith("out/train_bn/")]
    grads, own = dict(model.named_parameters()), (lambda t: np.linalg.norm(t.numpy().astype(np.float64)))
    return {f"out/train_bn/{k}": state[k].numpy()[:512] if state[k].ndim else state[k].numpy() for k in buffers} | {
        "out/train_q": seen["q"][0], "out/train_target_z": seen["target_z"][0], "out/train_loss": loss.numpy(),
        "out/grad_norms": np.array([own(grads[n].grad) for n in case.spec["grad_names"]]),
        "out/target_norms_after_ema": np.array([own(grads[n]) for n in case.spec["target_param_names"]]),
        "out/target_stem_after_ema": grads["target_network.encoder.0.weight"].numpy()[:8]}


class recording:
    """Context that keeps what the predictor and the target network put out, pass by pass."""

    def __init__(self, model: BYOLModel):
        self.layers = {"q": model.predictor, "target_z": model.target_network}

    def __enter__(self) -> dict[str, list]:
        seen = {name: [] for name in self.layers}
        self.hooks = [layer.register_forward_post_hook(lambda _layer, _inputs, out, kept=seen[name]: kept.append(out.numpy()))
                      for name, layer in self.layers.items()]
        return seen

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


def tiny_train(case: Case) -> dict:
    """All steps from the first file; and the epochs after the file to resume from, which have to end at the same weights."""
    check_normalization(case)
    out, method = train(case, "checkpoint.pth")
    batches = case.inputs["views_uint8"].shape[1]
    clocks = [Clock(t // batches, t % batches, batches, t) for t in range(len(out["trace/lr"]))]
    out["trace/mm"] = np.array([method.target_momentum(clock) for clock in clocks])
    if resume := case.spec.get("resume"):
        again, _ = train(case, resume["file"], resume["epochs_done"])
        out |= {f"json/resumed/{name}": compare(case, name, again) for name in case.arrays if name.startswith("final/")}
    return out


def train(case: Case, file: str, epochs_done: int = 0) -> tuple[dict, BYOL]:
    """The product's loop over the epochs after the one that an official training file ends."""
    state, views = official_state(case.file(file)), channels_last(case.inputs["views_uint8"])    # [epochs, steps, B, 2, H, W, 3]
    if state["epoch"] != epochs_done:
        raise ValueError(f"{file} ends epoch {state['epoch']}, the case says {epochs_done}")
    method = tiny_method(case.spec, has_bottlenecks=any(".conv3." in k for k in state["model"]))
    load_official(method.model, state["model"])
    out = {}

    def restore(optimizer: LarsSGD) -> None:
        out.update(optimizer_facts(case.spec, optimizer, state["optimizer"]["param_groups"]))
        flipped = transposed_keys(method.model)
        optimizer.load(momentum_from_official(state["optimizer"], optimizer, flipped), state["steps"])
    rest = views[epochs_done:]
    with recording(method.model) as seen:
        batches, start = {"views": rest.reshape(-1, *rest.shape[2:])}, Progress(epochs_done, step=state["steps"])
        out |= run_training(method, batches, len(rest), start, restore)
    return out | {f"out/{name}": np.stack(values) for name, values in seen.items()}, method


def tiny_method(spec: dict, has_bottlenecks: bool) -> BYOL:
    """The method with the case's settings, through the translation of the authors' file, on its unregistered network."""
    nested, net = copy.deepcopy(spec["config"]), {k: v for k, v in spec["net"].items() if k != "text"}
    block = Bottleneck if has_bottlenecks else BasicBlock
    widths = nested["model"]["projection"]
    if widths.pop("input_dim") != net["planes"][-1] * net["expansion"]:
        raise ValueError("the projector is not as wide as the network")
    nested["model"]["backbone"]["type"] = "resnet_tiny"                       # any known name: the network is given
    name, values = flat(nested)
    model = BYOLModel(lambda: ResNet(block, **net), values["projection_dim"], values["projection_hidden"],
                      values["prediction_hidden"])
    return BYOL(config.build("pretrain", BYOL, name, values), model, spec["config"]["world_size"])


def optimizer_facts(spec: dict, optimizer: LarsSGD, official: list[dict]) -> dict[str, Check]:
    """Order, exclusions and settings of the groups, as the case and the official file state them."""
    names = [name for g in optimizer.groups for name, _ in g.params]
    excluded = {name: name in optimizer.excluded for name in names}
    ours, theirs = ([{k: v for k, v in g.items() if k not in ("lr", "lr_scale", "initial_lr")} for g in groups]
                    for groups in (torch_state({}, 0, optimizer, frozenset(), 0.0)["param_groups"], official))
    return {"json/param_order": same(names, spec["param_order"]), "json/lars_exclude": same(excluded, spec["lars_exclude"]),
            "json/lars_eta": same(optimizer.trust, spec["lars_eta"]), "json/param_groups": same(ours, theirs)}


def momentum_from_official(state: dict, optimizer: LarsSGD, flipped: frozenset[str]) -> dict[str, np.ndarray]:
    """The file's momentum buffers by our slots and the names of the parameters, which have the same positions."""
    names = [name for g in optimizer.groups for name, _ in g.params]
    return {f"{ours}.{names[i]}": entry[theirs].T if names[i] in flipped else entry[theirs]
            for theirs, ours in slots_of(state["state"]).items() for i, entry in state["state"].items()}


@paddle.no_grad()
def legacy_load_and_convert(case: Case) -> dict:
    """The legacy file's backbone by order, its pooled features of ones and of the case's image."""
    check_normalization(case)
    model = registry.create("classifier", "resnet50")
    encoder = encoder_of(model)
    shapes = {f"online_network.encoder.{k}": v for k, v in official_shapes(encoder).items()}
    tensors = from_legacy({"online_backbone": case.synthetic_weights()}, shapes)
    load_official(encoder, {k.removeprefix("online_network.encoder."): v for k, v in tensors.items()})
    model.eval()
    image = normalize(tensor(channels_last(case.inputs["image_uint8"])))
    return {"json/encoder_names": same(list(encoder.state_dict()), case.spec["encoder_names"]),
            "json/n_encoder": same(len(shapes), case.spec["n_encoder"]),
            "out/features_ones": model.forward_features(paddle.ones([1, 3, 224, 224])).numpy(),
            "out/features_image": model.forward_features(image).numpy()}


KINDS = {"heads_mlp": heads_mlp, "lars": lars, "loss_schedules": loss_schedules, "full_size": full_size, "tiny_train": tiny_train,
         "legacy_load_and_convert": legacy_load_and_convert}
