"""Generated from the notebooks of 02_for_scientist; change a notebook and run `make export`."""
