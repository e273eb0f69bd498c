"""Small PyTorch forwards of the official networks on their raw state dicts, for verification.

Written from the papers and what the authors' code does, in PyTorch's layout, sharing nothing with the Paddle models:
what both compute alike, neither has wrong by itself.
"""
