#!/usr/bin/env bash
# BYOL pretraining: with ppssl/recipes/byol/resnet50_pretrain.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/byol_resnet50_pretrain}
launch main_pretrain.py -c byol/resnet50_pretrain "$@"
