"""A reference goes in; a verified file of known origin comes out."""
