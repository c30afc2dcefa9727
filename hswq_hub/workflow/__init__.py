"""A source and settings go in; a finished folder comes out, step by step, each done once."""
