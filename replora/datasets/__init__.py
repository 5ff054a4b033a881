"""Files on disk -> sample dicts. No batching and no Lightning here; `datamodules` turns samples into batches."""
