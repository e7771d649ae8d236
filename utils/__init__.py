"""The small shared module behind the entry scripts."""
