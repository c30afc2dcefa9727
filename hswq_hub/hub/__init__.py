"""A finished folder goes in; a verified repo on the Hub, or a Space that shows it, comes out."""
