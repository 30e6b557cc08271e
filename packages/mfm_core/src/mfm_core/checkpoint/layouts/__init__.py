"""The layouts that projects released, a file each; the most specific are asked first."""

from mfm_core.checkpoint.layouts.autoencoders import AUTOENCODERS
from mfm_core.checkpoint.layouts.layout import Layout
from mfm_core.checkpoint.layouts.mmpretrain import MMPRETRAIN
from mfm_core.checkpoint.layouts.ours import OURS
from mfm_core.checkpoint.layouts.plain import PLAIN
from mfm_core.checkpoint.layouts.pyslowfast import PYSLOWFAST
from mfm_core.checkpoint.layouts.pytorchvideo import PYTORCHVIDEO
from mfm_core.checkpoint.layouts.torchvision import TORCHVISION

LAYOUTS: tuple[Layout, ...] = (
    *MMPRETRAIN,
    *OURS,
    *PYSLOWFAST,
    *PYTORCHVIDEO,
    *TORCHVISION,
    *AUTOENCODERS,
    *PLAIN,
)
"""Asked in this order."""
