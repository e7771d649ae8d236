"""Speed: ours against the literal recipe, at mini size and in the geometry of SD 2.1."""
