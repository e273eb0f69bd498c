#!/usr/bin/env bash
# MAE ViT-Huge linear probing; the numbers are in ppssl/recipes/mae/vit_huge_patch14_linprobe.yaml
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_huge_linprobe}
launch main_linprobe.py -c mae/vit_huge_patch14_linprobe --finetune "${CKPT:-checkpoints/mae_pretrain_vit_huge.pth}" "$@"
