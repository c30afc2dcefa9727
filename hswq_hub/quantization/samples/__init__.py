"""Derivatives of the output in replayed calls go in; what single weights and inputs do to it comes out."""
