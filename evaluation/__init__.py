"""What a set of samples is worth: identity, quality, diversity, pose, prompt adherence, and the report."""
