"""What every room may use: errors, configuration, durations. Standard library and numpy only."""
