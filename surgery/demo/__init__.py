"""What `surgery demo` runs on: a recipe, its counterpart from random weights, and the digits."""
