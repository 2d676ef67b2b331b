"""Errors of the runtime; the message of each is for the user.

ContainerError          root
    RootlessError       no user namespace can be entered; carries a hint
    NetworkError        the network of containers cannot be made
    CgroupError         a cgroup cannot be made, or does not take its limits
    SetupError          a container cannot be made as its spec says
"""


class ContainerError(Exception):
    """Something that a container needs is unavailable."""


class RootlessError(ContainerError):
    """No user namespace can be entered; ``hint`` says what to allow."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class NetworkError(ContainerError):
    """The network cannot be made; the message says which step failed, and why."""


class CgroupError(ContainerError):
    """A cgroup cannot be made, or does not take its limits."""


class SetupError(ContainerError):
    """A container cannot be made as its spec says.

    ``code`` is the exit code of its process, as a shell has it.
    """

    def __init__(self, message: str, code: int = 125) -> None:
        super().__init__(message)
        self.code = code
