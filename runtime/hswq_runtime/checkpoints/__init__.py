"""A path, folder or repo goes in; the one checkpoint file that it means comes out, with its architecture recognised."""
