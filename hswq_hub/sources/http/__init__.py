"""An address goes in; a downloaded file comes out, cached by its SHA-256. Interrupted downloads are resumed."""
