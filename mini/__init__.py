"""The embedded default: a procedural face world, the small networks trained on it, and their builder."""
