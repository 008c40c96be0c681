"""Data for training and evaluation."""

from surgery.data.arrays import from_arrays
from surgery.data.dataset import Arrays, Dataset
from surgery.data.folder import from_folder
from surgery.data.npz import from_npz
from surgery.data.preprocess import InputSpec, input_spec
from surgery.data.sources import Source, as_dataset, as_part, open_data, open_part

__all__ = [
    "Arrays",
    "Dataset",
    "InputSpec",
    "Source",
    "as_dataset",
    "as_part",
    "from_arrays",
    "from_folder",
    "from_npz",
    "input_spec",
    "open_data",
    "open_part",
]
