#!/usr/bin/env bash
# BootMAE pretraining: with ppssl/recipes/bootmae/bootmae_large_pretrain.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/bootmae_large_pretrain}
launch main_pretrain.py -c bootmae/bootmae_large_pretrain "$@"
