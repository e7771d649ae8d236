"""The base model, its adapters, and denoising."""
