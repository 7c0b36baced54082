"""Text from a model: the state of decoding, and strategies over it. Must not know objectives or training."""
