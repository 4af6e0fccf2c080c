"""Dual encoders: texts and images to the vectors of `get_text_features` and `get_image_features`."""

from sqid_lib.encoders.encoder import Encoder
from sqid_lib.encoders.loading import load_encoder

__all__ = ["Encoder", "load_encoder"]
