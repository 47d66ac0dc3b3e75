"""Tasks as files of rows on disk, and what an import of them found."""
