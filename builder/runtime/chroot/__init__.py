"""Steps where no namespace can be made: chroot, Landlock, and a supervisor that answers for /proc."""
