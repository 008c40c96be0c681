"""Keras networks (versions 1, 2 and 3) as a source, read without Keras."""

from __future__ import annotations

from converters.keras.convert import convert_keras

__all__ = ["convert_keras"]
