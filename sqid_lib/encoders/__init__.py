"""Dual encoders: texts and images to the vectors of `get_text_features` and `get_image_features`."""

from sqid_lib.encoders.encoder import Encoder
from sqid_lib.encoders.loading import load_encoder, load_towers
from sqid_lib.encoders.towers import Towers

__all__ = ["Encoder", "Towers", "load_encoder", "load_towers"]
