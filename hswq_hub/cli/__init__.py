"""A command line goes in; one call of a function, and what it says, comes out."""
