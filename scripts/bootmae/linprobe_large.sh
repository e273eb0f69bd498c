#!/usr/bin/env bash
# BootMAE linear probing: with ppssl/recipes/bootmae/bootmae_large_linprobe.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/bootmae_large_linprobe}
launch main_linprobe.py -c bootmae/bootmae_large_linprobe --finetune "${CKPT:-$(newest runs/bootmae_large_pretrain)}" "$@"
