"""The command line. Parses, calls, prints; whatever decides anything is in the room it belongs to."""
