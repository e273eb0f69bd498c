"""One request from start to end: build, resume, train, log, evaluate, save."""
import contextlib
import dataclasses
import math
import signal
import time
from pathlib import Path

import paddle

from convert.formats import Refused
from convert.weights import read_weights
from ppssl import methods
from ppssl.config import Config
from ppssl.data.demo import demo_folder
from ppssl.data.images import BadImage, ImageFolder, decode
from ppssl.data.loader import WORKER_DIED, Loader, Samples, tells_of_a_worker
from ppssl.data.resize import warm
from ppssl.data.sampler import EvalSampler, TrainSampler
from ppssl import dist
from ppssl.engine import checkpoint
from ppssl.engine.evaluate import evaluate
from ppssl.engine.features import extract
from ppssl.engine.folder import claim
from ppssl.engine.log import Log
from ppssl.engine.loop import Plan, Progress, train
from ppssl.engine.precision import LossScale, autocast_dtype
from ppssl.engine.recompute import recompute_blocks
from ppssl.engine.report import Reporter
from ppssl.engine.reshard import placed
from ppssl.engine.sharding import Sharded, gathered
from ppssl.engine.weights import assign_all
from ppssl.errors import BadRequest, TrainingFailed

PICTURES = 4                                              # images of a run's pictures
MAX_BAD_STEPS = 20                                        # non-finite steps in a row before a run stops
ONE_REQUEST = 5.0                                         # seconds in which repeated signals are taken for one


def image_folder(data_path: str, split: str) -> ImageFolder:
    """The images of data_path/split, or of the demo set. Raises BadRequest where there are none."""
    root = demo_folder() if data_path == "demo" else Path(data_path)
    if root.name == split and not (root / split).exists():
        raise BadRequest(f"--data_path {root} is a split: give the folder that holds it")
    try:
        return ImageFolder(root / split)
    except (OSError, ValueError) as error:
        raise BadRequest(str(error)) from None


def readable(paths):
    """The images at these paths, decoded, those that cannot be read left out."""
    for path in paths:
        with contextlib.suppress(BadImage):
            yield decode(path)


def with_classes(config: Config, found: int) -> Config:
    """nb_classes filled in from the class folders where it was not given. Raises BadRequest where it is too small."""
    given = getattr(config.options, "nb_classes", found)
    if given is not None and given < found and hasattr(config.options, "nb_classes"):
        raise BadRequest(f"--nb_classes {given} and {found} class folders in {config.data.data_path}/train: use {found}")
    if given is None:
        return dataclasses.replace(config, options=dataclasses.replace(config.options, nb_classes=found))
    return config


def eval_loader(config: Config, method, split: str) -> Loader:
    """Every image of a split once, as the method evaluates it."""
    data = image_folder(config.data.data_path, split)
    sampler = EvalSampler(len(data), config.train.batch_size, dist.rank(), dist.world())
    return Loader(Samples(data, method.eval_sample, replace=False), sampler, config.data.num_workers, keep_workers=False)


def evaluate_all(config: Config, method, loader: Loader, amp: str | None) -> dict[str, float]:
    """Accuracies of every classifier the method evaluates."""
    results = {}
    for prefix, model in method.evaluated().items():
        results |= {prefix + name: value for name, value in evaluate(model, loader, method.images, amp).items()}
    loader.check_images(config.data.max_bad_images)
    return results


def warn_of_new_head(model, path: str) -> None:
    """Say so where the file holds no head for these classes."""
    tensors, own = read_weights(path, model), {id(p) for p in model.head.parameters()}
    new = [name for name, p in model.named_parameters() if id(p) in own and (name not in tensors or list(tensors[name].shape) != p.shape)]
    if new:
        print(f"warning: {path} holds no {', '.join(new)} for these classes: what follows is the accuracy of a head at random. "
              "--eval is for a classifier's checkpoint", flush=True)


def evaluate_only(config: Config) -> dict[str, float]:
    """--eval: load the weights of --resume (every tensor) or --finetune, and evaluate on val/."""
    path = config.run.resume
    if path == "auto":
        path, _ = next(checkpoint.newest(Path(config.run.output_dir)), ("", None))
    if not path and not config.options.finetune:
        raise BadRequest("--eval needs the weights: give --resume CKPT (or --finetune CKPT)")
    dist.start(config.run.device)
    config = with_classes(config, len(image_folder(config.data.data_path, "val").classes))
    method = methods.get(config.task, config.method)(config, world=dist.world())
    if path:
        try:
            assign_all(method.model, read_weights(path, method.model))
        except ValueError as error:
            raise BadRequest(f"{path} is not a checkpoint of {config.model}: {error}") from None
    elif dist.is_main():
        warn_of_new_head(method.model, config.options.finetune)
    warm()
    results = evaluate_all(config, method, eval_loader(config, method, "val"), autocast_dtype(config.run.amp))
    if dist.is_main():
        print("[Eval] " + ", ".join(f"{name}: {value:.3f}" for name, value in results.items()), flush=True)
    return results


class Training:
    """A run of the loop and everything around it. The constructor raises BadRequest, `run` TrainingFailed."""

    def __init__(self, config: Config):
        self.config, self.asked_to_stop = config, None
        dist.start(config.run.device)
        self.folder = Path(config.run.output_dir) if config.run.output_dir else None
        self.lock = claim(self.folder, config) if self.folder and dist.is_main() else None
        dist.barrier()
        paddle.seed(config.run.seed)
        train_data = image_folder(config.data.data_path, "train")
        self.config = config = with_classes(config, len(train_data.classes))
        self.method = methods.get(config.task, config.method)(config, world=dist.world())
        self.loader = self._train_loader(train_data)
        self.val_loader = eval_loader(config, self.method, "val") if self.method.evaluated() else None
        amp = autocast_dtype(config.run.amp)
        self.optimizer = self.method.build_optimizer()
        if config.run.sharding and dist.world() > 1:
            self.optimizer = Sharded(self.optimizer)
        if config.run.recompute:
            recompute_blocks(self.method.network, amp)
        self.scaler = LossScale() if amp == "float16" else None
        self.plan = Plan(config.train.epochs, config.train.accum_iter, config.train.clip_grad, amp, config.run.seed)
        self.progress = self._resume()
        self.log = Log(self.folder, Path(config.run.log_dir) if config.run.log_dir else self.folder)
        self.reporter = Reporter(self.log, self.loader, self.plan, self.progress, config.train.batch_size)
        dist.barrier()                                    # the networks' first exchange waits for nobody longer than GLOO does

    def _train_loader(self, data: ImageFolder) -> Loader:
        config = self.config
        sampler = TrainSampler(len(data), config.train.batch_size, dist.rank(), dist.world(), config.run.seed)
        if len(sampler) < config.train.accum_iter:
            need = config.train.batch_size * dist.world() * config.train.accum_iter
            raise BadRequest(f"{len(data)} images do not fill one effective batch of {need}: lower --batch_size or --accum_iter")
        warm()
        return Loader(Samples(data, self.method.sample, config.run.seed), sampler, config.data.num_workers)

    def _resume(self) -> Progress:
        """Where to start: a fresh run, or the checkpoint that --resume names."""
        run, path, snap = self.config.run, None, None
        if run.resume == "auto" and self.folder:
            path, snap = next(checkpoint.newest(self.folder), (None, None))
        elif run.resume:
            path, snap = run.resume, checkpoint.read(Path(run.resume))
        if snap is None:
            return Progress(epoch=run.start_epoch)
        checkpoint.check_same_run(snap, self.config, dist.world())
        checkpoint.restore(snap, self.method, self.optimizer)
        self.scaler = snap.scaler if self.scaler and snap.scaler else self.scaler
        progress, said = placed(snap, self.config, dist.world(), len(self.loader))
        print(f"resumed from {path}: {said}", flush=True)
        return progress

    def run(self) -> None:
        """Train to the end. Raises TrainingFailed, or SystemExit(143) after a SIGTERM once the state is saved."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.siginterrupt(signal.SIGTERM, False)        # the ranks' store takes an interrupted read for an error
        args, ranks = self.config.train, dist.world()
        self.log.say(f"{self.method.title}: {self.config.model}, {len(self.loader.samples)} images, {len(self.loader)} batches an "
                     f"epoch, effective batch {args.batch_size * args.accum_iter * ranks}, peak lr {self.method.peak_lr:.3e}")
        figures = self.method.before_training(self._extract)
        if figures:
            self.log.say(", ".join(f"{name}: {value:.3f}" for name, value in figures.items()))
            self.log.record(figures)
        self.reporter.restart()
        try:
            self._train()
        except (Refused, TrainingFailed) as error:
            raise self._failed(error) from None
        except (SystemError, OSError) as error:
            if not tells_of_a_worker(error):
                raise
            raise self._failed(WORKER_DIED) from None
        finally:
            self.log.close()
            if self.lock:
                self.lock.close()

    def _train(self) -> None:
        run, progress = self.config.run, self.progress
        for micro in train(self.method, self.optimizer, self.loader, self.plan, progress, self.scaler, self._stopping):
            self.reporter.add(micro)
            step = micro.step
            if step and (progress.step % run.print_freq == 0 or micro.ends_epoch):
                self.reporter.interval(step)
                self.loader.check_images(self.config.data.max_bad_images)
            if progress.bad_steps >= MAX_BAD_STEPS:
                raise TrainingFailed(f"loss or gradient not finite for {MAX_BAD_STEPS} steps in a row: lower the learning rate or "
                                     "use --amp none")
            done = step is not None and (step.stop or progress.step >= (self.config.train.max_train_step or math.inf))
            if micro.ends_epoch:
                self._end_epoch()
            elif done or step and run.save_steps and progress.step % run.save_steps == 0:
                self._save()
            if done:
                return self._leave(step)

    def _leave(self, step) -> None:
        if step.stop:
            self.log.say("stopped on request: continue with --resume auto")
            raise SystemExit(143)

    def _extract(self, split: str) -> tuple:
        """Features and labels of a split, images as in evaluation, by the frozen encoder."""
        self.method.model.eval()
        return extract(self.method.model.forward_features, eval_loader(self.config, self.method, split), self.method.images)

    def _stopping(self) -> bool:
        return self.asked_to_stop is not None

    def _on_sigterm(self, *_) -> None:
        """The first signal ends the run at the next step edge, a later one at once.

        Paddle's launcher sends one request as three signals, a fifth of a second apart, and then waits 30 s.
        """
        now = time.monotonic()
        if self.asked_to_stop is None:
            self.asked_to_stop = now
        elif now - self.asked_to_stop > ONE_REQUEST:
            raise SystemExit(143)

    def _end_epoch(self) -> None:
        results = evaluate_all(self.config, self.method, self.val_loader, self.plan.amp) if self.val_loader else {}
        improved = results.get("acc1", 0.0) > self.progress.best
        self.progress.best = max(self.progress.best, results.get("acc1", 0.0))
        self.reporter.flush()
        self.reporter.epoch(results)
        self._picture()
        self._save(best=improved)

    def _picture(self) -> None:
        """Show how the first images are reconstructed, in epochs whose checkpoint is kept for good and in the last."""
        from ppssl.visualize import panes, picture

        epoch, run = self.progress.epoch + 1, self.config.run
        wanted = epoch % run.save_freq == 0 or epoch == self.plan.epochs
        if self.log.draws and wanted and self.method.reconstructs():
            data = self.loader.samples.folder
            images = list(readable(data.path(i) for i in range(0, len(data), -(-len(data) // PICTURES))))
            if images:
                self.log.picture(self.reporter.thousandths(), picture(*panes(self.method, images)))

    def _save(self, best: bool = False) -> None:
        """Write a checkpoint on rank 0 while the others wait."""
        self.reporter.flush()
        optimizer = gathered(self.optimizer)
        if self.folder and dist.is_main():
            path = checkpoint.path_of(self.folder, self.progress, len(self.loader))
            checkpoint.save(path, self.method, optimizer, self.progress, self.scaler, dist.world(), len(self.loader))
            if best:
                checkpoint.keep_as_best(path)
            checkpoint.prune(self.folder, self.config.run.keep_last, self.config.run.save_freq)
        dist.barrier()

    def _failed(self, reason) -> TrainingFailed:
        paths = checkpoint.found(self.folder) if self.folder else []
        return TrainingFailed(f"{reason} (last good checkpoint: {paths[-1] if paths else 'none'})")
