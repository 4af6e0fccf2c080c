"""What a build imports, for the server of children to import once; nothing is run: threads do not survive a fork."""

import datasets  # noqa: F401
import pycurl  # noqa: F401
import torch.utils.data  # noqa: F401
import transformers.models.clip.modeling_clip
import transformers.models.clip.tokenization_clip  # noqa: F401

import torture.process
import torture.tasks  # noqa: F401
