"""Streams as WebDataset shards: written, scanned, indexed and read by position."""
