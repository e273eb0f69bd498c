#!/usr/bin/env bash
# MAE pretraining: with ppssl/recipes/mae/vit_huge_patch14_pretrain.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_huge_pretrain}
launch main_pretrain.py -c mae/vit_huge_patch14_pretrain "$@"
