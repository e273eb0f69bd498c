"""Importing ppssl first prepares the process for Paddle, as every entry point does."""
import ppssl  # noqa: F401
