#!/usr/bin/env bash
# MAE ViT-Huge finetune; the numbers are in ppssl/recipes/mae/vit_huge_patch14_finetune.yaml
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_huge_finetune}
launch main_finetune.py -c mae/vit_huge_patch14_finetune --finetune "${CKPT:-checkpoints/mae_pretrain_vit_huge.pth}" "$@"
