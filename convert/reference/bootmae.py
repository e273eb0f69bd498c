"""BootMAE (LightDXY/BootMAE): pretraining with two cross-attending decoders, the teacher's features, the classifier."""
import torch
import torch.nn.functional as F
from torch import Tensor

from convert.reference.tape import Tape, attend, gather, merge_heads, split_heads
from convert.reference.vit import classify


def attention(tape: Tape, name: str, x: Tensor, heads: int) -> Tensor:
    """Self-attention whose bias is (q_bias, 0, v_bias)."""
    q_bias, v_bias = tape.weight(f"{name}.q_bias"), tape.weight(f"{name}.v_bias")
    bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
    q, k, v = split_heads(tape.linear(f"{name}.qkv", x, bias), 3, heads)
    return tape.keep(name, tape.linear(f"{name}.proj", merge_heads(attend(q, k, v))))


def cross_attention(tape: Tape, name: str, x: Tensor, memory: Tensor, heads: int) -> Tensor:
    """Queries from x, keys (without bias) and values from `memory`."""
    q_bias, v_bias = tape.weight(f"{name}.q_bias"), tape.weight(f"{name}.v_bias")
    [q] = split_heads(tape.linear(f"{name}.q", x, q_bias), 1, heads)
    k, v = split_heads(tape.linear(f"{name}.kv", memory, torch.cat([torch.zeros_like(v_bias), v_bias])), 2, heads)
    return tape.keep(name, tape.linear(f"{name}.proj", merge_heads(attend(q, k, v))))


def block(tape: Tape, name: str, x: Tensor, heads: int, eps: float, memory: Tensor | None = None) -> Tensor:
    """Self-attention, in a decoder cross-attention on `memory`, MLP."""
    x = x + attention(tape, f"{name}.attn", tape.norm(f"{name}.norm1", x, eps), heads)
    if memory is not None:
        query = tape.norm(f"{name}.norm3", x, eps)
        x = x + cross_attention(tape, f"{name}.c_attn", query, tape.norm(f"{name}.norm4", memory, eps), heads)
    return tape.keep(name, x + tape.mlp(f"{name}.mlp", tape.norm(f"{name}.norm2", x, eps)))


def embed(tape: Tape, images: Tensor) -> Tensor:
    """cls token and patches with their positions, [B, 1 + L, C]."""
    x = tape.patches("patch_embed", images)
    return torch.cat([tape.weight("cls_token").expand(len(x), -1, -1), x], dim=1) + tape.weight("pos_embed")


def block_outputs(tape: Tape, x: Tensor, heads: int, eps: float) -> list[Tensor]:
    outputs = []
    for i in range(tape.depth("blocks")):
        outputs.append(x := block(tape, f"blocks.{i}", x, heads, eps))
    return outputs


def teacher_features(tape: Tape, images: Tensor, *, heads: int, eps: float = 1e-6) -> Tensor:
    """The patch tokens [B, L, C] of whole images, without the final norm."""
    return block_outputs(tape, embed(tape, images), heads, eps)[-1][:, 1:]


def decoder(tape: Tape, suffix: str, latent: Tensor, memory: Tensor, order: Tensor, table: Tensor, heads: int,
            eps: float) -> Tensor:
    """One decoder up to its norm, patches only [B, L, Dd]. order: [B, 1 + L] tokens in shuffled order, cls first."""
    visible = tape.linear(f"down{suffix}", latent)
    places = gather(table.expand(len(visible), -1, -1), order[:, visible.shape[1]:])
    tokens = torch.cat([visible, tape.weight(f"mask_token{suffix}") + places], dim=1)
    x = gather(tokens, order.argsort(dim=1))
    for i in range(tape.depth(f"decode_blocks{suffix}")):
        x = block(tape, f"decode_blocks{suffix}.{i}", x, heads, eps, memory)
    return tape.norm(f"decode_norm{suffix}", x, eps)[:, 1:]


def forward(tape: Tape, images: Tensor, ids_shuffle: Tensor, *, heads: int, masked: int, memory_blocks: list[int],
            eps: float = 1e-6) -> dict[str, Tensor]:
    """images [B, 3, H, W], ids_shuffle [B, L] (the last `masked` are hidden) -> pixels [B, 3, H, W], features
    [B, L, C], latent [B, 1 + K, C], mask [B, L] (1 hidden).

    memory_blocks: the encoder blocks whose raw outputs the pixel and the feature decoder attend to (one serves both).
    """
    order = torch.cat([torch.zeros_like(ids_shuffle[:, :1]), ids_shuffle + 1], dim=1)
    x = gather(embed(tape, images), order[:, :order.shape[1] - masked])
    outputs = block_outputs(tape, x, heads, eps)
    latent = tape.norm("norm", outputs[-1], eps)
    memories = [outputs[i] for i in memory_blocks]
    tables = tape.weight("de_pos_embed"), tape.weight("pos_embed")
    pixels = decoder(tape, "", latent, memories[0], order, tables[0], heads, eps)
    features = decoder(tape, "_1", latent, memories[-1], order, tables[1], heads, eps)
    kernel = tape.weight("lm_head.proj.weight")
    rows, columns = (images.shape[2 + axis] // kernel.shape[2 + axis] for axis in (0, 1))
    grid = pixels.transpose(1, 2).reshape(len(pixels), -1, rows, columns)
    image = F.conv_transpose2d(grid, kernel, tape.bias("lm_head.proj"), stride=tuple(kernel.shape[2:]))
    mask = (ids_shuffle.argsort(dim=1) >= ids_shuffle.shape[1] - masked).to(images.dtype)
    return {"pixels": tape.keep("lm_head", image), "features": tape.linear("lm_head_1", features), "latent": latent,
            "mask": mask}


def classifier(tape: Tape, images: Tensor, *, heads: int, eps: float = 1e-6) -> dict[str, Tensor]:
    """images [B, C, H, W] -> features [B, D] (mean patch through `fc_norm`, or cls through `norm`), logits."""
    return classify(tape, block_outputs(tape, embed(tape, images), heads, eps)[-1], first=1, eps=eps)
