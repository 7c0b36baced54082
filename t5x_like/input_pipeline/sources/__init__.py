"""Where documents come from: files of seven formats, data sets on disk, installed packages, functions."""
