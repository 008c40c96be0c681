"""Caffe networks: prototxt and caffemodel, in the formats of all its versions."""

from converters.caffe.convert import convert_caffe

__all__ = ["convert_caffe"]
