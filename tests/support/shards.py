"""Which tests may run beside others: two processes share the work, see tests/run."""

# End-to-end tests that make nothing on the machine which others could take for a leak.
FREE = ("test_registry_attacks.py", "test_registry_faults.py", "test_registry_transfers.py")
MACHINE = "machine"  # the group of all others that make containers
