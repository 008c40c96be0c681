"""Caffe networks: prototxt and caffemodel, in the formats of all its versions."""

from converters.caffe.convert import convert_caffe
from converters.caffe.reference import run_caffe

__all__ = ["convert_caffe", "run_caffe"]
