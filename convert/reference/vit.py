"""The ViT that MAE and TEC finetune and probe (their `models_vit.py` over timm 0.3.2), and iBOT's backbone."""
import torch
from torch import Tensor

from convert.reference.tape import Tape


def tokens(tape: Tape, images: Tensor, *, heads: int, eps: float) -> Tensor:
    """[B, C, H, W] -> [B, 1 + N, D], before the final norm. TEC's cls token goes through its MLP first."""
    cls = tape.weight("cls_token")
    cls = tape.mlp("cls_token_mlp", cls) if "cls_token_mlp.fc1.weight" in tape else cls
    x = torch.cat([cls.expand(len(images), -1, -1), tape.patches("patch_embed", images)], dim=1)
    return tape.vit_blocks("blocks", x + tape.weight("pos_embed"), heads, eps)


def head(tape: Tape, features: Tensor) -> Tensor:
    """A linear head, or a probe's batch norm (running statistics) and linear layer."""
    if "head.weight" in tape:
        return tape.linear("head", features)
    return tape.linear("head.1", tape.batch_norm("head.0", features, eps=1e-6))


def classify(tape: Tape, x: Tensor, first: int, eps: float) -> dict[str, Tensor]:
    """Tokens [B, N, D] -> features [B, D] and, where the state has a head, logits [B, classes].

    The features are the mean of the tokens from `first` on through `fc_norm`, or token 0 through `norm`, as the state
    has it.
    """
    pooled = "fc_norm.weight" in tape
    features = tape.norm("fc_norm", x[:, first:].mean(1), eps) if pooled else tape.norm("norm", x, eps)[:, 0]
    has_head = "head.weight" in tape or "head.1.weight" in tape
    return {"features": features} | ({"logits": head(tape, features)} if has_head else {})


def forward(tape: Tape, images: Tensor, *, heads: int, eps: float = 1e-6) -> dict[str, Tensor]:
    """images [B, C, H, W] -> features [B, D], logits [B, classes]."""
    return classify(tape, tokens(tape, images, heads=heads, eps=eps), first=1, eps=eps)
