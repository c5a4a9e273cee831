"""Processes, signals, directories, files and compilation."""
