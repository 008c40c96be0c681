"""Data for training and evaluation."""

from surgery.data.arrays import from_arrays
from surgery.data.augment import Augment
from surgery.data.dataset import Arrays, Dataset
from surgery.data.folder import from_folder
from surgery.data.hugging_face import from_saved
from surgery.data.items import from_items
from surgery.data.manifest import from_manifest
from surgery.data.npz import from_npz
from surgery.data.preprocess import InputSpec, input_spec
from surgery.data.sources import Source, as_dataset, as_part, open_data, open_part

__all__ = [
    "Arrays",
    "Dataset",
    "Augment",
    "InputSpec",
    "Source",
    "as_dataset",
    "as_part",
    "from_arrays",
    "from_folder",
    "from_items",
    "from_manifest",
    "from_npz",
    "from_saved",
    "input_spec",
    "open_data",
    "open_part",
]
