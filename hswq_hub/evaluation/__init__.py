"""Quantized files and their original go in; figures, tables and pictures of how close they are come out."""
