"""The method: objectives and prompts on top, diffusion, training and sampling below."""
