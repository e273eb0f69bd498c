"""Benchmarks: this project and its peer as two processes on one machine, asked in turn."""
