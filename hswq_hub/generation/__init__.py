"""A pipeline, a prompt and a seed go in; a picture comes out, or the recorded calls of the denoiser that made it."""
