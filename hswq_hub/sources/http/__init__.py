"""An address goes in; a file comes out, resumed where an earlier run stopped, and kept by its content."""
