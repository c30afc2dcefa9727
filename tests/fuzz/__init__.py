"""A seeded fuzzer of everything that strangers write."""
