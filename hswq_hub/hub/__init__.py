"""A finished folder goes in; a repo on the Hub that was checked, or a Space that shows it, comes out."""
