"""Errors of single weights and inputs go in; number formats, what is kept, and how readers multiply come out."""
