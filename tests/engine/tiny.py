"""A tiny MAE and batches made up on the spot, for tests of the loop."""
import numpy as np
import paddle

from ppssl import config
from ppssl.methods.mae import MAE
from ppssl.models.mae import MaskedAutoencoderViT


def model(seed: int = 0):
    paddle.seed(seed)
    return MaskedAutoencoderViT(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=8, decoder_depth=1,
                                decoder_num_heads=2)


def method(weights_seed: int = 0, **values) -> MAE:
    settings = {"lr": 1e-2, "warmup_epochs": 0, "epochs": 2, "batch_size": 4} | values
    return MAE(config.build("pretrain", MAE, "mae_vit_tiny_patch4", settings), model(weights_seed))


class Batches:
    """A loader over random images, the same in every epoch."""

    def __init__(self, count: int = 4, size: int = 4):
        rng = np.random.default_rng(0)
        self.images = rng.standard_normal((count, size, 3, 16, 16)).astype(np.float32)
        self.noise = rng.random((count, size, 16), np.float32)

    def split(self) -> "Batches":
        """The same samples in twice as many batches of half the size."""
        halves = Batches()
        halves.images = self.images.reshape(-1, self.images.shape[1] // 2, *self.images.shape[2:])
        halves.noise = self.noise.reshape(-1, self.noise.shape[1] // 2, self.noise.shape[2])
        return halves

    def __len__(self):
        return len(self.images)

    def epoch(self, epoch, first=0):
        for i in range(first, len(self)):
            yield {"image": paddle.to_tensor(self.images[i]), "noise": paddle.to_tensor(self.noise[i])}


def weights(method) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in method.model.state_dict().items()}


def largest_difference(a: dict, b: dict) -> float:
    return max(np.abs(a[k] - b[k]).max() for k in a)


def determined(arrays: dict) -> dict[str, np.ndarray]:
    """Without the attention biases: the key part has no true gradient, and Adam makes steps of its rounding noise."""
    return {k: v for k, v in arrays.items() if not k.endswith("attn.qkv.bias")}
