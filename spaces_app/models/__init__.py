"""A reference goes in; a model with its variants, limits and defaults comes out, and a visitor's LoRA as a file."""
