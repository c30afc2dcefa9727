"""A `publish` command or a list of models goes in; runs of it, here or on Hugging Face's GPUs, come out."""
