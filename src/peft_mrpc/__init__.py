"""Adapt pretrained language models to sentence-pair classification and compare the strategies."""

import logging

__version__ = "0.1.0"

# bitsandbytes reports an optional CPU kernel as an error each time it is imported; it is no
# error of the user's, and would be the first line they see.
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
