"""TEC (sail-sg/TEC): the pretraining network, and the frozen base model it predicts."""
import torch
import torch.nn.functional as F
from torch import Tensor

from convert.reference.mae import random_masking, unshuffle
from convert.reference.tape import Tape, gather, split_heads

ADAPTER_EPS = 1e-5                                        # the adapter's two norms; eps elsewhere


def rows_without_cls(logits: Tensor, rows: Tensor) -> Tensor:
    """Attention logits [B, H, N, N] -> those of the given rows, without the cls column: [B, 1, R, H, N - 1]."""
    chosen = gather(logits.transpose(1, 2).flatten(2), rows)
    return chosen.unflatten(2, (logits.shape[1], -1))[..., 1:].unsqueeze(1)


def block_outputs(tape: Tape, x: Tensor, heads: int, eps: float) -> list[Tensor]:
    outputs = []
    for i in range(tape.depth("blocks")):
        outputs.append(x := tape.vit_block(f"blocks.{i}", x, heads, eps))
    return outputs


def base(tape: Tape, images: Tensor, *, heads: int, last_layers: int, top: int, eps: float = 1e-6) -> dict[str, Tensor]:
    """What is predicted: features [B, L, C], and for cls and the `top` patches it attends to most (index [B, 1, top])
    the last block's attention logits [B, 1, 1 + top, heads, L]."""
    x = tape.patches("patch_embed", images)
    x = torch.cat([tape.weight("cls_token").expand(len(x), -1, -1), x], dim=1) + tape.weight("pos_embed")
    outputs = block_outputs(tape, x, heads, eps)
    q, k, _ = split_heads(tape.stages[f"blocks.{len(outputs) - 1}.attn.qkv"][-1], 3, heads)
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5                                  # [B, H, 1 + L, 1 + L]
    index = logits[:, :, 0, 1:].mean(1).topk(top, dim=-1).indices                           # [B, top]
    rows = F.pad(index + 1, (1, 0))
    return {"features": torch.stack(outputs[-last_layers:]).mean(0)[:, 1:], "index": index.unsqueeze(1),
            "logits": rows_without_cls(logits, rows)}


def adapter(tape: Tape, x: Tensor, name: str = "encoder_adaptor") -> Tensor:
    """All block outputs side by side [B, N, depth*D] -> [B, N, D]."""
    groups = tape.norm(f"{name}.adap_before", x, ADAPTER_EPS).chunk(tape.depth(f"{name}.fuse_fcs"), dim=-1)
    fused = [tape.linear(f"{name}.fuse_fcs.{i}", group) for i, group in enumerate(groups)]
    return tape.norm(f"{name}.adap_after", sum(tape.mlp(f"{name}.adap_mlps.{i}", y) + y for i, y in enumerate(fused)),
                     ADAPTER_EPS)


def encode(tape: Tape, images: Tensor, ids_keep: Tensor, heads: int, eps: float) -> Tensor:
    """The outputs of all blocks side by side, the last one's through the final norm: [B, 1 + K, depth*D]."""
    position, cls = tape.weight("pos_embed"), tape.weight("cls_token")
    cls = tape.mlp("cls_token_mlp", cls) if "cls_token_mlp.fc1.weight" in tape else cls
    x = gather(tape.patches("patch_embed", images) + position[:, 1:], ids_keep)
    x = torch.cat([(cls + position[:, :1]).expand(len(x), -1, -1), x], dim=1)
    outputs = block_outputs(tape, x, heads, eps)
    return torch.cat([*outputs[:-1], tape.norm("norm", outputs[-1], eps)], dim=-1)


def decode(tape: Tape, name: str, x: Tensor, ids_restore: Tensor, heads: int, eps: float) -> Tensor:
    """The shared blocks between one decoder's own embedding and norm, [B, 1 + L, Dd]."""
    x = tape.linear(f"{name}.decoder_embed", x)
    x = torch.cat([x[:, :1], unshuffle(x[:, 1:], tape.weight(f"{name}.mask_token"), ids_restore)], dim=1)
    x = tape.vit_blocks("decoder_blocks", x + tape.weight("decoder_pos_embed"), heads, eps)
    return tape.norm(f"{name}.decoder_norm", x, eps)


def attention_logits(tape: Tape, x: Tensor, index: Tensor, heads: int, name: str = "forward_att_decoder") -> Tensor:
    """Queries cls and the patches `index` [B, 1, K], all patches as keys: [B, 1, 1 + K, heads, L]."""
    q, k = split_heads(tape.linear(f"{name}.decoder_qk", x), 2, heads)
    width = heads * q.shape[-1]
    return rows_without_cls(q @ k.transpose(-2, -1) * width ** -0.5, F.pad(index.squeeze(1) + 1, (1, 0)))


def forward(tape: Tape, images: Tensor, noise: Tensor, index: Tensor | None, *, heads: int, decoder_heads: int,
            mask_ratio: float = 0.75, eps: float = 1e-6) -> dict[str, Tensor]:
    """images [B, C, H, W], noise [B, L], the base model's index [B, 1, K] -> feature_pred [B, L, C], attention_pred
    [B, 1, 1 + K, heads, L] (where the network has that decoder), adapter [B, 1 + K', D], mask [B, L], ids_restore."""
    ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
    blocks = encode(tape, images, ids_keep, heads, eps)
    x = tape.keep("encoder_adaptor", adapter(tape, blocks))
    features = decode(tape, "forward_fea_decoder", x, ids_restore, decoder_heads, eps)
    out = {"feature_pred": tape.linear("forward_fea_decoder.decoder_pred", features)[:, 1:], "blocks": blocks,
           "adapter": x, "mask": mask, "ids_restore": ids_restore}
    if "forward_att_decoder.decoder_qk.weight" in tape and index is not None:
        y = decode(tape, "forward_att_decoder", x, ids_restore, decoder_heads, eps)
        out["attention_pred"] = attention_logits(tape, y, index, heads)
    return out


def losses(target: dict[str, Tensor], out: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """loss_fea over the removed patches, loss_att over all rows and heads, and their sum."""
    t = target["features"]
    t = (t - t.mean(1, keepdim=True)) / (t.var(1, keepdim=True) + 1e-6).sqrt()
    error = ((out["feature_pred"] - t) ** 2).mean(-1)
    parts = {"loss_fea": (error * out["mask"]).sum() / out["mask"].sum()}
    if "attention_pred" in out:
        p = (target["logits"] / temperature).softmax(-1)
        parts["loss_att"] = -(p * out["attention_pred"].log_softmax(-1)).sum(-1).mean()
    return parts | {"loss": sum(parts.values())}
