#!/usr/bin/env bash
# TEC pretraining: with ppssl/recipes/tec/vit_base_patch16_mae_300ep_pretrain.yaml; variables: scripts/launch.sh
# Needs the base model's file in checkpoints/ (or $PPSSL_CHECKPOINTS); DRY_RUN=1 says which.
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/tec_base_mae_300_pretrain}
launch main_pretrain.py -c tec/vit_base_patch16_mae_300ep_pretrain "$@"
