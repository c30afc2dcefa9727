"""A command goes in; the same command on somebody else's GPU comes out, or one for each model of a list."""
