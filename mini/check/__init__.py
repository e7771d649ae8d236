"""Acceptance figures of the miniature world, measured on fresh seeds and held-out people."""
