"""FP8 weights go in; the modules that compute with them, LoRA layers included, come out."""
