"""Data for training and evaluation."""

from surgery.data.dataset import Arrays, Dataset
from surgery.data.preprocess import InputSpec, input_spec
from surgery.data.sources import Source, as_dataset, from_arrays, from_folder, from_npz, open_data

__all__ = [
    "Arrays",
    "Dataset",
    "InputSpec",
    "Source",
    "as_dataset",
    "from_arrays",
    "from_folder",
    "from_npz",
    "input_spec",
    "open_data",
]
