"""How the miniature's networks are made: renders, training, export."""
