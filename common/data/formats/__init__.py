"""One file a format: it finds the splits of a place and opens each as a table of raw rows. `common.data.places` chooses
among them. A file here imports `common.data.table` and what reads a cell."""
