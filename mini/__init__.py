"""The miniature world: a procedural face renderer, and small networks trained on its pictures."""
