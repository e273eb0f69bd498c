#!/usr/bin/env bash
# BYOL linear probing: with ppssl/recipes/byol/resnet50_linprobe.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/byol_resnet50_linprobe}
launch main_linprobe.py -c byol/resnet50_linprobe --finetune "${CKPT:-$(newest runs/byol_resnet50_pretrain)}" "$@"
