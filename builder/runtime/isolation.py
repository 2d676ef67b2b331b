"""How steps are kept apart from this machine: the names of the ways. ``builder.runtime.probe`` tries them."""

NAMESPACES, CHROOT = "namespaces", "chroot"
WAYS = (NAMESPACES, CHROOT)
