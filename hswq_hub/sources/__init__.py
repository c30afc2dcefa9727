"""A reference goes in; a file that was verified and whose origin is known comes out."""
