#!/usr/bin/env bash
# ConvMAE linear probing: with ppssl/recipes/convmae/convvit_base_patch16_linprobe.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/convmae_base_linprobe}
launch main_linprobe.py -c convmae/convvit_base_patch16_linprobe --finetune "${CKPT:-$(newest runs/convmae_base_pretrain)}" "$@"
