"""What every room uses: text, files that appear whole, the device, progress; it knows nothing of models."""
