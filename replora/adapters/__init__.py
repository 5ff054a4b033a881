"""Low-rank adaptation of frozen weights: options, factors, injection, merging and files."""
