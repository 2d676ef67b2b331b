"""Enter the isolation of a command, and open the store for it.

A command that only reads the store uses ``open_store``. One that writes files of layers calls
``enter_isolation`` first. One that also starts containers uses ``open_store_for_containers``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import NamedTuple

from builder.errors import BuildError
from builder.runtime.isolation import CHROOT, NAMESPACES, Isolation
from builder.support import debug
from cache.store import Store, default_root

_AUTO = "auto"
_CODE = "E-ISOLATION"


class ContainerStore(NamedTuple):
    """A store, and how containers on it are isolated: NAMESPACES or CHROOT."""

    store: Store
    isolation: Isolation


def open_store(options: argparse.Namespace) -> Store:
    """Open the store that ``--root``, the environment or the user's home names."""
    return Store(options.root or default_root())


def enter_isolation(options: argparse.Namespace) -> Isolation:
    """Become root, of this machine or of a new user namespace; return how containers are isolated.

    The store stays that of the user. Raises BuildError where neither way works.
    """
    from builder.runtime import probe
    from builder.runtime.rootless import is_real_root, leave_chroot

    wanted = _wanted(options)
    if wanted == CHROOT:
        if missing := probe.missing_for_chroot():
            raise BuildError(
                f"--isolation=chroot is unavailable here: {missing}", _no_isolation_hint(missing), code=_CODE
            )
        return CHROOT
    if is_real_root():
        leave_chroot()
        return NAMESPACES
    if os.geteuid() == 0 and _falls_back(wanted, required=True):
        return CHROOT
    os.environ["PYBUILD_ROOT"] = options.root or default_root()
    _enter_namespace()
    return NAMESPACES


def open_store_for_containers(options: argparse.Namespace, isolation: Isolation) -> ContainerStore:
    """Open the store after ``enter_isolation`` returned *isolation*; containers may get a weaker one.

    Namespaces need mounts with mapped IDs on the store's file system, or a user namespace of our own, which
    root enters here. Where root can do neither, containers are chroots. Raises BuildError.
    """
    from builder.runtime.probe import can_map_mounts, can_overlay
    from builder.runtime.rootless import entered

    store = open_store(options)
    if isolation == NAMESPACES and not entered() and not _remembered(store, "mapped mounts", can_map_mounts):
        if _falls_back(_wanted(options), required=False):
            isolation = CHROOT
        else:
            store.close()
            _enter_namespace()
            store = open_store(options)
    store.check_owners()
    if isolation == CHROOT and os.statvfs(store.root).f_flag & os.ST_NOEXEC:
        store.close()
        raise BuildError(
            f"programs may not be executed on the file system of {store.root} (noexec)",
            "use another --root or PYBUILD_ROOT",
            code=_CODE,
        )
    store.overlays = isolation == NAMESPACES and _remembered(store, "overlays", can_overlay)
    if debug.enabled():
        debug.debug(
            f"store {store.root}: isolation {isolation}, overlayfs {'yes' if store.overlays else 'no'}"
        )
    return ContainerStore(store, isolation)


def _wanted(options: argparse.Namespace) -> str:
    """The value of ``--isolation``; commands without containers have no such option."""
    return str(vars(options).get("isolation", _AUTO))


def _falls_back(wanted: str, required: bool) -> bool:
    """Return True if containers are chroots because namespaces are unavailable.

    With *required*, raise BuildError if chroots are unavailable too.
    """
    from builder.runtime import probe

    if wanted != _AUTO or not probe.missing_for_namespaces():
        return False
    missing = probe.missing_for_chroot()
    if missing and required:
        raise BuildError(
            f"neither namespaces nor chroots are available here: {missing}",
            _no_isolation_hint(missing),
            code=_CODE,
        )
    return not missing


def _no_isolation_hint(missing: str) -> str:
    """What to change where containers cannot even be chroots."""
    if "CAP_" not in missing:
        return "run pybuild doctor to see what is missing; docs/containers.md says what to change"
    return (
        "give root of the container the capabilities CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID and "
        "SYS_CHROOT, as docker and podman do, or user namespaces (a pod with hostUsers: false); "
        "docs/containers.md has more"
    )


def _enter_namespace() -> None:
    from builder.runtime.errors import RootlessError
    from builder.runtime.rootless import enter

    try:
        enter()
    except RootlessError as error:
        raise BuildError(error.message, error.hint, code=_CODE) from None


def _remembered(store: Store, feature: str, probe: Callable[[str], bool]) -> bool:
    """Return True if *probe* succeeds on the store's file system.

    A success is remembered for this boot and user. A user is known by the ID map of the namespace that was
    entered, or by the namespace itself.
    """
    from builder.runtime.rootless import entered

    user = os.readlink("/proc/self/ns/user")
    if entered():
        with open("/proc/self/uid_map", encoding="ascii") as file:
            user = " ".join(file.read().split())
    device = os.stat(store.root).st_dev
    if store.memos.probe_succeeded(feature, user, device):
        return True
    if not probe(store.temporary()):
        return False
    store.memos.set_probe_succeeded(feature, user, device)
    return True
