#!/usr/bin/env bash
# MAE ViT-Large finetune; the numbers are in ppssl/recipes/mae/vit_large_patch16_finetune.yaml
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_large_finetune}
launch main_finetune.py -c mae/vit_large_patch16_finetune --finetune "${CKPT:-checkpoints/mae_pretrain_vit_large.pth}" "$@"
