"""Blocks that every system shares."""
