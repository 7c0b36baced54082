"""Text from a model: prefill and a loop with a key-value cache. Must not know objectives or training."""
