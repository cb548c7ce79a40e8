"""Images that a file lists: CSV, JSON lines or Parquet. See README.md."""
