"""FP8 weights go in; the modules that compute with them, their LoRAs included, come out."""
