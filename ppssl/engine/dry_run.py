"""`--dry_run`: everything is built, one sample goes through, and what would run is printed. Nothing is trained or written."""
import numpy as np
import paddle
import yaml

from ppssl import dist, methods
from ppssl.config import Config
from ppssl.data.loader import collate
from ppssl.data.sampler import TrainSampler
from ppssl.engine.cost import counting
from ppssl.engine.run import image_folder, with_classes
from ppssl.errors import BadRequest
from ppssl.optim.schedules import Clock

IMAGES = 2                                                # in the counted batch: mixup needs pairs


def describe(config: Config) -> None:
    """Print the resolved request and what it amounts to. A missing data set is said, not refused."""
    dist.start(config.run.device)
    try:
        data = image_folder(config.data.data_path, "train")
        config = with_classes(config, len(data.classes))
    except BadRequest as error:
        if str(error).startswith("--"):
            raise
        print(f"note: no training images yet ({error})")
        data = None
    paddle.seed(config.run.seed)
    method = methods.get(config.task, config.method)(config, world=dist.world())
    if dist.is_main():
        print(yaml.safe_dump(config.flat(), sort_keys=False).strip())
        for name, value in facts(config, method, data).items():
            print(f"{name + ':':<28}{value}", flush=True)


def facts(config: Config, method, data) -> dict[str, str]:
    """The figures of a request, ready to print."""
    train, ranks = config.train, dist.world()
    out = {"method": f"{method.title} ({method.name}), model {config.model}",
           "effective batch": f"{train.batch_size * train.accum_iter * ranks} = batch_size {train.batch_size} x accum_iter "
                              f"{train.accum_iter} x {ranks} ranks",
           "peak learning rate": f"{method.peak_lr:.6g}"}
    if data is not None:
        per_epoch = len(TrainSampler(len(data), train.batch_size, world=ranks)) // train.accum_iter
        out["images"] = f"{len(data):,} in {len(data.classes)} classes"
        out["optimizer steps"] = f"{per_epoch * train.epochs:,} = {per_epoch:,} an epoch x {train.epochs} epochs"
    parameters = method.model.parameters()
    total, trained = (sum(p.size for p in ps) for ps in (parameters, [p for p in parameters if p.trainable]))
    flops, step_flops, activations = cost_of_image(method)
    stored = sum(t.size for layer in method.layers().values() for t in layer.state_dict().values()) + 2 * trained
    out |= {"parameters": f"{total:,} ({trained:,} trainable)",
            "forward pass": f"{flops / 1e9:.2f} GFLOP an image, teachers included",
            "training step": f"{step_flops / 1e9:.2f} GFLOP an image",
            "memory of weights and state": f"{4 * (stored + trained) / 2 ** 30:.2f} GiB in float32",
            "memory of activations": f"about {4 * activations * train.batch_size / 2 ** 30:.2f} GiB at batch_size {train.batch_size} in float32",
            "checkpoint": f"{4 * stored / 2 ** 20:,.0f} MiB"}
    return out


def cost_of_image(method) -> tuple[float, float, float]:
    """(FLOP of the forward pass, of the training step, activation numbers) of one image, with everything the loss computes."""
    size = method.config.data.input_size
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    batch = {k: paddle.to_tensor(v) for k, v in collate([method.sample(image, 0, rng) for _ in range(IMAGES)]).items()}
    networks = {id(n): n for n in (*method.layers().values(), *method.frozen())}
    with counting(*networks.values()) as cost:
        method.loss(method.network, batch, Clock(0, 0, 1, 0))
    return cost.flops / IMAGES, cost.step_flops / IMAGES, cost.activations / IMAGES
