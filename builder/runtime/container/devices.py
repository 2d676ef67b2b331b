"""What /dev of a container holds: the devices and links of the OCI runtime specification's default set."""

# Character devices by name: major and minor number (linux, admin-guide/devices.txt).
DEVICES = {
    b"null": (1, 3),
    b"zero": (1, 5),
    b"full": (1, 7),
    b"random": (1, 8),
    b"urandom": (1, 9),
    b"tty": (5, 0),
}
# Links to what a process has open, which lead to other files for each process.
STREAM_LINKS = {
    b"fd": b"/proc/self/fd",
    b"stdin": b"/proc/self/fd/0",
    b"stdout": b"/proc/self/fd/1",
    b"stderr": b"/proc/self/fd/2",
}
LINKS = {**STREAM_LINKS, b"core": b"/proc/kcore", b"ptmx": b"pts/ptmx"}
