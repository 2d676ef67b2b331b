"""The seccomp filter of a step, with the structure of docker's default profile, as a BPF program.

``syscalls.tbl`` lists the allowed calls. Refused calls fail with EPERM. Calls that the table does not know,
clone3 and the x32 ABI fail with ENOSYS, for which libraries have a fallback. Both the
machine's own ABI and its 32-bit one are filtered; any other kills the process.

The kernel skips the filter for calls whose number alone decides that they are allowed, so the
program looks at numbers first, by a binary search over ranges, and at arguments in its leaves.
"""

import functools
import os
import struct

from builder.runtime.spec import CAPABILITY_NAMES

_TABLE = os.path.join(os.path.dirname(__file__), "syscalls.tbl")
_COLUMNS = ("x86_64", "i386", "aarch64", "arm", "riscv64", "ppc64le", "s390x")
# linux/audit.h: AUDIT_ARCH of each column.
_AUDIT = (0xC000003E, 0x40000003, 0xC00000B7, 0x40000028, 0xC00000F3, 0xC0000015, 0x80000016)
# The columns that a machine can run, its own first.
_ABIS = {"x86_64": (0, 1), "aarch64": (2, 3), "riscv64": (4,), "ppc64le": (5,), "s390x": (6,)}

# Instructions of classic BPF (linux/bpf_common.h), as (code, jump if true, jump if false, value).
Instruction = tuple[int, int, int, int]
_LOAD, _JUMP, _RETURN = 0x20, 0x05, 0x06
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_AT_LEAST, _JUMP_SET = 0x15, 0x25, 0x35, 0x45
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_EPERM = 0x00050000 | 1
_ENOSYS = 0x00050000 | 38
_SUCCESS = 0x00050000  # the errno 0: the call is not made, and succeeds

# clone may make threads and processes, but no namespace.
_NAMESPACES = 0x7E020000
# Linux, Linux with 32-bit addresses or uname26, and the question what it is.
_PERSONALITIES = (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)
# Dead protocols, AF_ALG (38, the kernel's crypto API) and AF_VSOCK (40, the hypervisor).
_DOMAINS_REFUSED = (12, 19, 20, 23, 25, 34, 37, 38, 40)
_LAST_DOMAIN = 45
_SOCKETCALL_SOCKET = 1
_OWNERSHIP = frozenset(
    ("chown", "chown32", "fchown", "fchown32", "fchownat", "lchown", "lchown32", "setgroups", "setgroups32")
)


@functools.cache
def program(
    machine: str, capabilities: int, any_socketcall: bool = False, fake_owners: bool = False
) -> bytes:
    """Return the filter for steps that hold the bit mask *capabilities*, as struct sock_filter items.

    32-bit x86 programs make sockets by a call whose arguments no filter can read. It is refused, otherwise
    AF_ALG and AF_VSOCK would be open; *any_socketcall* allows it, for images of that architecture. With
    *fake_owners* changing an owner succeeds and does nothing. The filter is empty for a machine that the
    table does not know.
    """
    abis = _ABIS.get(machine, ())
    held = {name for bit, name in enumerate(CAPABILITY_NAMES) if capabilities >> bit & 1}
    out: list[Instruction] = [(_LOAD, 0, 0, _ARCH)]
    sections = [_section(column, held, any_socketcall, fake_owners) for column in abis]
    if not sections:
        return b""
    after = 2 * len(sections) + 1  # instructions from here to the first section
    for number, column in enumerate(abis):
        skipped = after - 2 * (number + 1) + sum(map(len, sections[:number]))
        out += [(_JUMP_EQUAL, 0, 1, _AUDIT[column]), (_JUMP, 0, 0, skipped)]
    out.append((_RETURN, 0, 0, _KILL))
    for section in sections:
        out += section
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in out)


def _section(column: int, held: set[str], any_socketcall: bool, fake_owners: bool) -> list[Instruction]:
    """Return the part of the filter for the calls of one ABI."""
    name = _COLUMNS[column]
    argument = _ARGUMENTS + (4 if name == "s390x" else 0)  # where the low half of the first one is
    second = argument + 8
    known: dict[int, list[Instruction]] = {}
    for words in _rows():
        if words[2 + column] == "-":
            continue
        match words[1]:
            case "allow" if fake_owners and words[0] in _OWNERSHIP:
                verdict = [_returns(_SUCCESS)]
            case "allow":
                verdict = [_returns(_ALLOW)]
            case "clone":
                verdict = _clone(second if name == "s390x" else argument, held)
            case "clone3":
                verdict = [_returns(_ALLOW if "sys_admin" in held else _ENOSYS)]
            case "personality":
                verdict = _only(argument, _PERSONALITIES)
            case "socket":
                verdict = _domains(argument)
            case "socketcall" if name == "s390x" or any_socketcall:
                verdict = [_returns(_ALLOW)]  # s390x has no other way to make sockets
            case "socketcall":
                verdict = _all_but(argument, (_SOCKETCALL_SOCKET,))
            case names:
                verdict = [_returns(_EPERM if held.isdisjoint(names.split(",")) else _ALLOW)]
        known[int(words[2 + column])] = verdict
    ranges: list[tuple[int, list[Instruction]]] = [(0, known.get(0, [_returns(_ENOSYS)]))]
    for number in sorted({*known, *(number + 1 for number in known)} - {0}):
        verdict = known.get(number, [_returns(_ENOSYS)])
        if verdict != ranges[-1][1]:
            ranges.append((number, verdict))
    return [(_LOAD, 0, 0, _NUMBER), *_search(ranges)]


@functools.cache
def _rows() -> list[list[str]]:
    with open(_TABLE, encoding="ascii") as file:
        return [line.split() for line in file if line[0] not in "#\n"]


def _search(ranges: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Find the range of the loaded number; each begins at its number and ends at the next."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    first = ranges[middle][0]
    if len(below) < 256:
        return [(_JUMP_AT_LEAST, len(below), 0, first), *below, *above]
    return [(_JUMP_AT_LEAST, 0, 1, first), (_JUMP, 0, 0, len(below)), *below, *above]


def _returns(value: int) -> Instruction:
    return _RETURN, 0, 0, value


def _clone(argument: int, held: set[str]) -> list[Instruction]:
    if "sys_admin" in held:
        return [_returns(_ALLOW)]
    test = (_JUMP_SET, 0, 1, _NAMESPACES)
    return [(_LOAD, 0, 0, argument), test, _returns(_EPERM), _returns(_ALLOW)]


def _only(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    """Allow the argument to have one of *values*."""
    count = len(values)
    tests = [(_JUMP_EQUAL, count - place, 0, value) for place, value in enumerate(values)]
    return [(_LOAD, 0, 0, argument), *tests, _returns(_EPERM), _returns(_ALLOW)]


def _all_but(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    """Refuse the argument to have one of *values*."""
    count = len(values)
    tests = [(_JUMP_EQUAL, count - place, 0, value) for place, value in enumerate(values)]
    return [(_LOAD, 0, 0, argument), *tests, _returns(_ALLOW), _returns(_EPERM)]


def _domains(argument: int) -> list[Instruction]:
    """Return the verdict on the address family of socket(2). Its low half counts: the kernel takes an int."""
    refused = _all_but(argument, _DOMAINS_REFUSED)
    return [refused[0], (_JUMP_GREATER, len(refused) - 2, 0, _LAST_DOMAIN), *refused[1:]]
