"""Files, a model's page and lists go in; the prompts to calibrate with and to measure on come out."""
