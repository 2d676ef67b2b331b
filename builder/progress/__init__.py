"""Forms of progress: sinks that print events. ``lines`` is shared with replay and imports nothing."""
