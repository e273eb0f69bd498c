"""Weights and training states between PyTorch and Paddle, both ways: files, layouts, families, verification."""
