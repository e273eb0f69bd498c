"""Self-supervised pretraining: python main_pretrain.py --model mae_vit_base_patch16 --data_path DATA"""
import sys

from ppssl.cli import main

if __name__ == "__main__":
    sys.exit(main("pretrain"))
