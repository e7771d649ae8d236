"""What the miniature is held to, measured on fresh seeds and held-out people."""
