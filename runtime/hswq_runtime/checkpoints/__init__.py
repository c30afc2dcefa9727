"""A path, folder or repo goes in; a view of the one file that is meant comes out, with its architecture found out."""
