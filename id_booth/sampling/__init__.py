"""Making an image data set with trained LoRAs."""
