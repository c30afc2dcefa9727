"""Visitors' input goes in; what they see comes out, and JSON for programs."""
