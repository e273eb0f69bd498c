"""ConvMAE's encoder on whole maps with the mask multiplied in: what visible tokens alone must give."""
import numpy as np
import paddle
import paddle.nn.functional as F


def relative(ours, theirs) -> float:
    """The largest difference of two arrays, relative to the largest number of the second."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def channels_last(layer, x):
    """A norm over the channels of [B, C, H, W]."""
    x = F.layer_norm(x.transpose([0, 2, 3, 1]), x.shape[1:2], layer.weight, layer.bias, layer._epsilon)
    return x.transpose([0, 3, 1, 2])


def conv(layer, x, **kwargs):
    return F.conv2d(x, layer.weight, layer.bias, **kwargs)


def block(layer, x, shown):
    """x [B, C, H, W], shown [B, 1, H, W] with 1 where visible: the mask goes before the 5x5 convolution."""
    hidden = conv(layer.attn, conv(layer.conv1, channels_last(layer.norm1, x)) * shown, padding=2, groups=x.shape[1])
    x = x + conv(layer.conv2, hidden)
    return x + conv(layer.mlp.fc2, F.gelu(conv(layer.mlp.fc1, channels_last(layer.norm2, x))))


def stage(embed, blocks, x, mask, grid):
    """x [B, C, H, W], mask [B, N] with 1 hidden -> the stage's output map."""
    x = F.gelu(channels_last(embed.norm, conv(embed.proj, x, stride=embed.proj.weight.shape[2])))
    side = x.shape[2] // grid[0]
    shown = (1 - mask).reshape([-1, 1, *grid]).repeat_interleave(side, axis=2).repeat_interleave(side, axis=3)
    for layer in blocks:
        x = block(layer, x, shown)
    return x


def tokens(x, ids_keep):
    """[B, D, h, w] -> the kept tokens [B, K, D]."""
    return paddle.take_along_axis(x.flatten(2).transpose([0, 2, 1]), ids_keep.unsqueeze(-1), axis=1)


def latent(model, images, ids_keep, mask):
    """The normalised visible tokens [B, K, D] of a ConvMAE model."""
    one = stage(model.patch_embed1, model.blocks1, images, mask, model.grid)
    two = stage(model.patch_embed2, model.blocks2, one, mask, model.grid)
    three = stage(model.patch_embed3, [], two, mask, model.grid)
    x = model.patch_embed4(three.flatten(2).transpose([0, 2, 1])) + model.pos_embed
    x = paddle.take_along_axis(x, ids_keep.unsqueeze(-1), axis=1)
    for layer in model.blocks3:
        x = layer(x)
    decode1, decode2 = model.stage1_output_decode, model.stage2_output_decode
    carried = [tokens(conv(d, m, stride=d.weight.shape[2]), ids_keep) for d, m in ((decode1, one), (decode2, two))]
    return model.norm(x + carried[0] + carried[1])
