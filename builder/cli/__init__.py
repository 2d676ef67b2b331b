"""The command line: arguments, messages and exit codes."""
