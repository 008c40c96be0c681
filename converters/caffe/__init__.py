"""Caffe networks: prototxt and caffemodel, in the formats of all its versions."""
