"""Rounding and measuring that are under way go in; what a run that was stopped goes on from comes out."""
