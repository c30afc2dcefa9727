"""What ships with the package: the demo model, the prompts, the catalog."""
