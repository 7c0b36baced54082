"""What can be known of a run before it is submitted: one function per check, by the functions that ``train`` calls."""
