"""Sinks: events to text. ``lines`` is shared with replay and imports nothing."""
