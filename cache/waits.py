"""How long the main thread may wait at a time."""

# Seconds. A signal that comes just before a wait does not end it. Without a limit the wait would last as long
# as the work, although the user cancelled it.
SIGNAL_TICK = 0.25
