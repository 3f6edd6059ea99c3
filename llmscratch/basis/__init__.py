"""Generated from the notebooks of 01_common_basis; change a notebook and run `make export`."""
