"""Running a run: state, step, loop. The top of the library; only the command line is above it."""
