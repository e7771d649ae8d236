"""Face recognition backbones and the loading of their weights."""
