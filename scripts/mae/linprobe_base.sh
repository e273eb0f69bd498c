#!/usr/bin/env bash
# MAE ViT-Base linear probing; the numbers are in ppssl/recipes/mae/vit_base_patch16_linprobe.yaml
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_base_linprobe}
launch main_linprobe.py -c mae/vit_base_patch16_linprobe --finetune "${CKPT:-checkpoints/mae_pretrain_vit_base.pth}" "$@"
