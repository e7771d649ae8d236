"""Speed: this project against the official scripts' way, on the miniature and at SD 2.1's size."""
