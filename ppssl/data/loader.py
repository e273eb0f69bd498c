"""From image files to batches: samples drawn by (seed, epoch, index), unreadable images replaced and reported."""
import atexit
import multiprocessing
import shutil
import signal
import time
import traceback

import cv2
import numpy as np
import paddle

from ppssl.data.images import BadImage, ImageFolder, decode
from ppssl.errors import TrainingFailed

NEXT_TRIES = 16                                           # unreadable neighbours tried before giving up on a sample
MIN_BAD_IMAGES = 10                                       # unreadable images that any run puts up with
WORKER_DIED = "a data worker died (killed, out of memory, or /dev/shm too small): see the log above, or try fewer --num_workers"


class Samples(paddle.io.Dataset):
    """Item (epoch, index) -> dict of arrays of one sample, drawn by its own generator.

    The generator is seeded by (seed, epoch, index), so that neither workers nor ranks change a sample. An unreadable
    image is replaced by the next readable one of the index (training) or left out with label -1 (evaluation); 'bad'
    holds its index, else -1. Never raises: an error travels as text, because Paddle's loader hangs or loses it otherwise.
    """

    def __init__(self, folder: ImageFolder, sample, seed: int = 0, replace: bool = True):
        self.folder, self.sample, self.seed, self.replace = folder, sample, seed, replace

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, item: tuple[int, int]) -> dict | str:
        try:
            return self._item(*item)
        except Exception:                                 # noqa: BLE001 - see the class's docstring
            return traceback.format_exc()

    def _item(self, epoch: int, index: int) -> dict:
        image, source, bad = self._readable(index)
        rng = np.random.default_rng([self.seed, epoch, index])
        label = self.folder.label(source) if bad < 0 or self.replace else -1
        return self.sample(image, label, rng) | {"bad": np.int64(bad)}

    def _readable(self, index: int):
        """(image, index it came from, index of an unreadable image or -1)."""
        bad = -1
        for source in ((index + k) % len(self.folder) for k in range(NEXT_TRIES)):
            try:
                return decode(self.folder.path(source)), source, bad
            except BadImage:
                bad = index if bad < 0 else bad
        raise TrainingFailed(f"{NEXT_TRIES} images in a row cannot be read, from {self.folder.path(index)} on")


def collate(items: list) -> dict[str, np.ndarray]:
    """Stack the samples' arrays; the first error among them becomes the batch {'error': utf-8 bytes}."""
    for item in items:
        if isinstance(item, str):
            return {"error": np.frombuffer(item.encode(), np.uint8).copy()}
    return {key: np.stack([item[key] for item in items]) for key in items[0]}


class Loader:
    """Batches of device tensors, epoch by epoch. `waited`: seconds the consumer has waited for them so far.

    num_workers 0 loads in this process; keep_workers lets them live from epoch to epoch. Raises TrainingFailed where a
    worker raised or died.
    """

    def __init__(self, samples: Samples, sampler, num_workers: int, keep_workers: bool = True):
        self.samples, self.sampler, self.waited = samples, sampler, 0.0
        self._reported, self._known = [], set()
        self._inner = paddle.io.DataLoader(
            samples, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers, return_list=True,
            worker_init_fn=_prepare_worker, persistent_workers=keep_workers and num_workers > 0,
            use_shared_memory=num_workers > 0 and shared_memory_suffices(samples, sampler.batch_size, num_workers))

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int = 0, first: int = 0):
        """Iterate over the batches of an epoch from batch `first` on: dicts of tensors."""
        self.sampler.epoch, self.sampler.first = epoch, first
        try:
            for batch in self._timed(iter(self._inner)):
                if "error" in batch:
                    text = bytes(batch["error"].numpy()).decode()
                    raise TrainingFailed(f"a sample could not be made: {text.strip().splitlines()[-1]}\n{text}")
                self._reported.append(batch.pop("bad"))
                yield batch
        except SystemError as error:
            raise TrainingFailed(WORKER_DIED) from error


    def check_images(self, max_share: float) -> None:
        """Name the unreadable images met since the last call. Raises TrainingFailed beyond `max_share` of the set.

        Reads from the device what the batches reported; a few unreadable images are put up with in any set.
        """
        found = paddle.concat(self._reported).numpy() if self._reported else np.empty(0)
        self._reported = []
        for index in sorted({int(i) for i in found if i >= 0} - self._known):
            print(f"unreadable image, left out: {self.samples.folder.path(index)}", flush=True)
            self._known.add(index)
        limit = max(MIN_BAD_IMAGES, max_share * len(self.samples))
        if len(self._known) > limit:
            raise TrainingFailed(f"{len(self._known)} unreadable images, the limit is {limit:.0f}: repair the data set or raise "
                                 "--max_bad_images")

    def _timed(self, batches):
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - start
            yield batch


def shared_memory_suffices(samples: Samples, batch_size: int, num_workers: int) -> bool:
    """Whether /dev/shm can hold the batches under way; says the numbers where it cannot."""
    item = samples[(0, 0)]
    if isinstance(item, str):
        return True                                       # the first batch will carry the error
    needed = 2 * (num_workers + 1) * batch_size * sum(np.asarray(v).nbytes for v in item.values())
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = 0
    if free < needed:
        print(f"/dev/shm has {free >> 20} MiB free and the loader wants {needed >> 20} MiB: batches go through pipes instead, "
              "which is slower. Enlarge it (docker: --shm-size), or lower --num_workers or --batch_size.", flush=True)
    return free >= needed


def tells_of_a_worker(error: Exception) -> bool:
    """Whether Paddle raised this, wherever the training process just was, because a worker had died."""
    return "DataLoader process" in str(error)


def _prepare_worker(_worker: int) -> None:
    """One thread per worker, which leaves it to the training process to stop: launchers signal whole groups of processes."""
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """At exit, before `multiprocessing` sends its own SIGTERM to the workers and waits for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)         # Paddle's handler takes their end for a failure
    for worker in multiprocessing.active_children():
        worker.kill()


atexit.register(_end_workers)
