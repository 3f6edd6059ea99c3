"""Generated from the notebooks of 03_for_engineer; change a notebook and run `make export`."""
