#!/usr/bin/env bash
# MAE pretraining: with ppssl/recipes/mae/vit_large_patch16_800ep_pretrain.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_large_800_pretrain}
launch main_pretrain.py -c mae/vit_large_patch16_800ep_pretrain "$@"
