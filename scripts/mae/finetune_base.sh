#!/usr/bin/env bash
# MAE ViT-Base finetune; the numbers are in ppssl/recipes/mae/vit_base_patch16_finetune.yaml
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_base_finetune}
launch main_finetune.py -c mae/vit_base_patch16_finetune --finetune "${CKPT:-checkpoints/mae_pretrain_vit_base.pth}" "$@"
