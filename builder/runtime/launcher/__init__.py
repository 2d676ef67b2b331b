"""The launcher: the process that starts containers, and how others talk to it."""
