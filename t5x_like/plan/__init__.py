"""What a run will cost, from its config alone: bytes, FLOPs, and what a chip could do. Must not know the train loop."""
