"""Docker, containerd, podman, buildah, umoci and skopeo with stores of the tests' own, asked in the same words."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

Words = list[str | Path]
PATH = "/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ.get("PATH", "")
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")  # raising them may be forbidden


class Refused(Exception):
    """A program ended with an error; the text is all that it said."""


def program(name: str) -> str:
    """The distribution's program; a missing one fails who asks."""
    found = shutil.which(name, path=PATH)
    assert found, f"{name} is not installed (see tests/run)"
    return found


def say(command: Words, **env: str) -> str:
    """Run a command; its standard output. Raises Refused."""
    done = subprocess.run(command, capture_output=True, env={**os.environ, **env}, check=False, timeout=120)
    out, err = (data.decode("utf-8", "backslashreplace") for data in (done.stdout, done.stderr))
    if done.returncode:
        raise Refused(f"{' '.join(map(str, command))}\n{out}{err}")
    return out


@contextmanager
def served(command: Words, answers: Words, log: Path, **env: str) -> Iterator[None]:
    """A daemon, for as long as the block lasts; it is there when the command *answers* succeeds."""
    with log.open("wb") as file:
        daemon = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **env})
    try:
        end = time.monotonic() + 60
        while subprocess.run(answers, capture_output=True, check=False).returncode:
            assert time.monotonic() < end and daemon.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
        yield
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


@contextmanager
def dockerd(tools: dict[str, str], folder: Path) -> Iterator[list[str]]:
    """A docker daemon without networks; the client's command line."""
    socket = f"unix://{folder}/docker.sock"
    command: Words = [tools["dockerd"], f"--data-root={folder}/data", f"--exec-root={folder}/exec", "-H", socket,
                      f"--pidfile={folder}/docker.pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]  # fmt: skip
    client = [tools["docker"], "-H", socket]
    with served(command, [*client, "info"], folder / "docker.log"):
        yield client


@contextmanager
def containerd(folder: Path) -> Iterator[list[str]]:
    """A containerd with the namespace of Kubernetes; the client's command line."""
    config = folder / "containerd.toml"
    config.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
        f'[grpc]\naddress = "{folder}/c.sock"\n[ttrpc]\naddress = "{folder}/t.sock"\n'
    )
    client = [program("ctr"), "-a", f"{folder}/c.sock", "-n", "k8s.io"]
    command: Words = [program("containerd"), "-c", config]
    with served(command, [*client, "version"], folder / "containerd.log", PATH=PATH):
        yield client
    remove_cgroups("k8s.io")


def remove_cgroups(name: str) -> None:
    """Remove the cgroups of this name, and those below, that are empty; whatever hierarchies there are."""
    for folder, *_ in os.walk("/sys/fs/cgroup", topdown=False):
        if name in folder.split("/"):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


# -- one image at a time, in everybody's words ---------------------------------------------


class Peer:
    """A program with a store; *folder* is its own.

    A source is an archive's path, or the name of an image in a registry.
    """

    def __init__(self, folder: Path, client: Words) -> None:
        self.folder = folder
        self.client = client

    def __call__(self, *words: str | Path, **env: str) -> str:
        """Run the client. Raises Refused."""
        return say([*self.client, *words], **env)

    def take(self, source: str) -> str:
        """Load or pull an image; what it is called there."""
        raise NotImplementedError

    def root(self, image: str) -> AbstractContextManager[Path]:
        """The image's files."""
        raise NotImplementedError

    def run(self, image: str) -> str:
        """What the image's command says."""
        raise NotImplementedError

    def forget(self) -> None:
        """Remove all images, so that the next layers are unpacked again."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave nothing mounted."""


def is_archive(source: str) -> bool:
    return source.startswith("/")


class Docker(Peer):
    def take(self, source: str) -> str:
        if not is_archive(source):
            return self("pull", "-q", source).strip()
        return self("load", "-q", "-i", source).rpartition("Loaded image: ")[2].strip()

    @contextmanager
    def root(self, image: str) -> Iterator[Path]:
        """Docker shows no tree of an image: its layers are mounted as it would mount them."""
        data = json.loads(self("image", "inspect", "--format={{json .GraphDriver.Data}}", image))
        place = self.folder / "mounted"
        place.mkdir(exist_ok=True)
        layers = f"lowerdir={data['UpperDir']}:{data['LowerDir']}"
        say(["mount", "-t", "overlay", "-o", f"ro,{layers}", "overlay", place])
        try:
            yield place
        finally:
            say(["umount", place])

    def run(self, image: str) -> str:
        return self("run", "--rm", "--network=none", image)

    def forget(self) -> None:
        if images := self("images", "-aq").split():
            self("rmi", "-f", *sorted(set(images)))


class Containerd(Peer):
    def take(self, source: str) -> str:
        if not is_archive(source):
            self("images", "pull", "--plain-http", source)
            return source
        self("images", "import", source)
        return next(name for name in self("images", "list", "-q").split() if not name.startswith("sha256:"))

    @contextmanager
    def root(self, image: str) -> Iterator[Path]:
        place = self.folder / "mounted"
        place.mkdir(exist_ok=True)
        self("images", "mount", image, place)
        try:
            yield place
        finally:
            self("images", "unmount", "--rm", place)

    def run(self, image: str) -> str:
        return self("run", "--rm", image, "interop")

    def forget(self) -> None:
        if images := self("images", "list", "-q").split():
            self("images", "remove", "--sync", *images)


class Podman(Peer):
    def take(self, source: str) -> str:
        if not is_archive(source):
            return self("pull", "-q", "--tls-verify=false", source).strip()
        return self("load", "-q", "-i", source).rpartition("Loaded image: ")[2].strip()

    @contextmanager
    def root(self, image: str) -> Iterator[Path]:
        yield Path(self("image", "mount", image).strip())
        self("image", "unmount", "-f", image)

    def run(self, image: str) -> str:
        return self("run", "--rm", "--network=none", *LIMITS, image)

    def forget(self) -> None:
        self("rmi", "-af")

    def close(self) -> None:
        self("image", "unmount", "-af")
        subprocess.run(["umount", self.folder / "root/overlay"], capture_output=True, check=False)
        remove_cgroups("libpod_parent")


class Buildah(Peer):
    def take(self, source: str) -> str:
        if is_archive(source):
            return self("from", "-q", "--pull", f"oci-archive:{source}").strip()
        return self("from", "-q", "--tls-verify=false", f"docker://{source}").strip()

    @contextmanager
    def root(self, image: str) -> Iterator[Path]:
        yield Path(self("mount", image).strip())
        self("umount", image)

    def run(self, image: str) -> str:
        (settings,) = [json.loads(self("inspect", image))["OCIv1"]["config"]]
        return self("run", "--isolation=chroot", image, "--", *settings["Cmd"])

    def forget(self) -> None:
        self("rm", "-a")
        self("rmi", "-af")

    def close(self) -> None:
        self("rm", "-a")
        subprocess.run(["umount", self.folder / "root/overlay"], capture_output=True, check=False)


class Umoci(Peer):
    """It reads the layout that an archive is, unpacked by tar; its images are bundles for runc."""

    def take(self, source: str) -> str:
        layout, bundle = self.folder / "layout", self.folder / "bundle"
        layout.mkdir()
        say(["tar", "-xf", source, "-C", layout])
        (tag,) = {
            item["annotations"]["org.opencontainers.image.ref.name"]
            for item in json.loads((layout / "index.json").read_text())["manifests"]
        }
        self("unpack", "--image", f"{layout}:{tag}", bundle)
        return str(bundle)

    @contextmanager
    def root(self, image: str) -> Iterator[Path]:
        yield Path(image) / "rootfs"

    def run(self, image: str) -> str:
        """By runc, without the terminal that umoci asks for."""
        config = Path(image) / "config.json"
        settings = json.loads(config.read_text())
        settings["process"]["terminal"] = False
        settings["process"].pop("rlimits", None)  # raising them may be forbidden
        config.write_text(json.dumps(settings))
        return say([program("runc"), f"--root={self.folder}/runc", "run", "-b", image, "interop-umoci"])

    def forget(self) -> None:
        subprocess.run(["rm", "-rf", self.folder / "layout", self.folder / "bundle"], check=True)


class Skopeo(Peer):
    """It keeps no images: what it took is a folder with the manifests and blobs as they were."""

    def take(self, source: str) -> str:
        kind = "oci-archive:" if is_archive(source) else "docker://"
        tls, of_source = (
            ([], []) if is_archive(source) else (["--tls-verify=false"], ["--src-tls-verify=false"])
        )
        self("inspect", *tls, kind + source)
        copy = self.folder / "copy"
        if is_archive(source) and "manifest.json" in say(["tar", "-tf", source]).split():
            self("copy", "-q", f"docker-archive:{source}", f"dir:{copy}")
            self.forget()
        self("copy", "-q", "--all", *of_source, kind + source, f"dir:{copy}")
        for file in copy.iterdir():
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            named = file.name.removesuffix(".manifest.json")
            assert file.name in ("version", "manifest.json") or found == named, file
        return str(copy)

    def forget(self) -> None:
        subprocess.run(["rm", "-rf", self.folder / "copy"], check=True)


class Peers:
    """All of them; each is started when it is first asked for."""

    def __init__(self, folder: Path, tools: dict[str, str], stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._tools = tools
        self._stack = stack
        self._there: dict[str, Peer] = {}

    def __getitem__(self, name: str) -> Peer:
        if name not in self._there:
            folder = self._folder / name[0]
            folder.mkdir()
            peer = self._starters()[name](folder)
            self._stack.callback(peer.close)
            self._there[name] = peer
        return self._there[name]

    def _starters(self) -> dict[str, Callable[[Path], Peer]]:
        enter = self._stack.enter_context

        def stored(name: str, folder: Path) -> Words:
            return [program(name), f"--root={folder}/root", f"--runroot={folder}/run"]

        return {
            "docker": lambda folder: Docker(folder, [*enter(dockerd(self._tools, folder))]),
            "containerd": lambda folder: Containerd(folder, [*enter(containerd(folder))]),
            "podman": lambda folder: Podman(
                folder,
                [
                    *stored("podman", folder),
                    "--cgroup-manager=cgroupfs",
                    "--runtime=runc",
                    "--events-backend=none",
                ],
            ),
            "buildah": lambda folder: Buildah(folder, stored("buildah", folder)),
            "umoci": lambda folder: Umoci(folder, [program("umoci")]),
            "skopeo": lambda folder: Skopeo(folder, [program("skopeo")]),
        }


@contextmanager
def peers(tools: dict[str, str]) -> Iterator[Peers]:
    """All peers in a folder with a short name, as podman wants it."""
    folder = Path(tempfile.mkdtemp(prefix="i", dir="/dev/shm"))
    try:
        with contextlib.ExitStack() as stack:
            yield Peers(folder, tools, stack)
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def versions(packages: list[str]) -> dict[str, str]:
    """The upstream versions of Debian's packages."""
    shown = say(["dpkg-query", "-W", "-f", "${Package} ${source:Upstream-Version}\n", *packages])
    pairs = (line.split(" ") for line in shown.splitlines())
    return {name: version.partition("+")[0].partition("~")[0] for name, version in pairs}
