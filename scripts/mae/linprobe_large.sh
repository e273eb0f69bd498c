#!/usr/bin/env bash
# MAE ViT-Large linear probing; the numbers are in ppssl/recipes/mae/vit_large_patch16_linprobe.yaml
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_large_linprobe}
launch main_linprobe.py -c mae/vit_large_patch16_linprobe --finetune "${CKPT:-checkpoints/mae_pretrain_vit_large.pth}" "$@"
