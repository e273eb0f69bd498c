"""Architectures only: official parameter names, explicit randomness."""
