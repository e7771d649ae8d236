"""The renderer's parts: heads, hair, skin, places, views."""
