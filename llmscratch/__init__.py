"""LLMs from scratch, proven: the library that the course's notebooks build.

`basis`, `scientist` and `engineer` are generated from the notebooks; `kit` and `exercises` are written by hand.
"""

__version__ = "0.1.0"
