"""A source goes in; statistics of each of its layers and recorded calls come out."""
