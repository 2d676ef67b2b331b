"""Image config and history: variables, quoting, inheritance (T41 to T62, T87 to T89)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from harness import Pybuild
from oci import read_image

pytestmark = pytest.mark.e2e

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = ["/bin/sh", "-c"]

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "T41-values-of-before": ("ENV abc=hello\nENV abc=bye def=$abc", {"Env": ["abc=bye", "def=hello"]}),
    "T42-legacy-env": ("ENV k a b  c", {"Env": ["k=a b  c"]}),
    "T42-legacy-quotes": ("ENV k 'a  b' \"c\"", {"Env": ["k=a  b c"]}),
    "T43-words": ('ENV a=b\\ c d="x y" e=foo%sbar', {"Env": ["a=b c", "d=x y", "e=foo%sbar"]}),
    "T43-single-quotes": ("ENV a=1 b='$a'", {"Env": ["a=1", "b=$a"]}),
    "T44-arg-leaves-config": ("ENV X=1\nARG X=2\nENV Y=$X", {"Env": ["X=1", "Y=2"]}),
    "T48-quoted-args": ('ARG a="x y"\nENV b="$a" c=$a', {"Env": ["b=x y", "c=x y"]}),
    "T50-labels": (
        'LABEL "k"="v" a=b\\\n c=\'d e\'\nLABEL a=B',
        {"Labels": {"k": "v", "a": "B", "c": "d e"}},
    ),
    "T51-expose": (
        "ENV P='80 443/UDP'\nEXPOSE 9000-9002 $P 127.0.0.1:1:2/tcp",
        {"ExposedPorts": {f"{p}": {} for p in "9000/tcp 9001/tcp 9002/tcp 80/tcp 443/udp 2/tcp".split()}},
    ),
    "T54-no-expansion": ("ENV a=1\nCMD echo $a", {"Cmd": [*SHELL, "echo $a"]}),
    "T55-own-cmd-stays": ('CMD ["a"]\nENTRYPOINT ["b"]', {"Cmd": ["a"], "Entrypoint": ["b"]}),
    "T55-inherited-cmd-goes": (
        'CMD ["a"]\nFROM first\nENTRYPOINT ["b"]',
        {"Cmd": None, "Entrypoint": ["b"]},
    ),
    "T56-empty": ('ENTRYPOINT ["x"]\nENTRYPOINT []\nCMD []', {"Cmd": None, "Entrypoint": None}),
    "T57-not-json": ("CMD ['a', 'b']", {"Cmd": [*SHELL, "['a', 'b']"]}),
    "T58-workdir": ("WORKDIR /a\nWORKDIR b\nWORKDIR ../c/", {"WorkingDir": "/a/c"}),
    "T58-workdir-empty": ("WORKDIR /a\nWORKDIR $none", {"WorkingDir": "/a"}),
    "T58-workdir-written": ("WORKDIR //a/./b/../c//", {"WorkingDir": "//a/./b/../c//"}),
    "T58-workdir-joined": ("WORKDIR //a//\nWORKDIR ./b/../c//", {"WorkingDir": "/a/c"}),
    "T51-empty-protocol": ("EXPOSE 80/ 81/$none", {"ExposedPorts": {"80/tcp": {}, "81/tcp": {}}}),
    "blank-label-name": ('LABEL ""=x', {"Labels": {"": "x"}}),
    "T43-bytes-that-are-no-text": ("ENV a=\udce9", {"Env": ["a=\ufffd"]}),
    "lone-surrogate": ('CMD ["\\ud800x"]', {"Cmd": ["\ufffdx"]}),
    "T58-workdir-variable": ("ENV d=/x\nWORKDIR $d/y", {"WorkingDir": "/x/y"}),
    "T60-user-as-written": ("ENV u=bob\nUSER ${u}:staff", {"User": "bob:staff"}),
    "T61-scratch-path": ("ENV x=1", {"Env": [f"PATH={PATH}", "x=1"]}),
    "T109-path": ("ENV PATH=$PATH:/x", {"Env": [f"PATH={PATH}:/x"]}),
    "operators": (
        "ENV a=1 e=\nENV b=${a:-x} c=${e:-x} d=${e-x} f=${a:+y} g=${none+y} h=${a}b i=$a-b",
        {"Env": ["a=1", "e=", "b=1", "c=x", "d=", "f=y", "g=", "h=1b", "i=1-b"]},
    ),
    "patterns": (
        "ENV f=a.tar.gz\nENV b=${f%.*} c=${f%%.*} d=${f#*.} e=${f##*.} g=${f/a/b} h=${f//r/R}",
        {"Env": ["f=a.tar.gz", "b=a.tar", "c=a", "d=tar.gz", "e=gz", "g=b.tar.gz", "h=a.taR.gz"]},
    ),
    "exec-entrypoint": ('ENTRYPOINT ["/x", "y z"]', {"Entrypoint": ["/x", "y z"]}),
    "shell-entrypoint": ("ENTRYPOINT exec x", {"Entrypoint": [*SHELL, "exec x"]}),
}


@pytest.mark.parametrize(("lines", "expected"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings(pybuild: Pybuild, lines: str, expected: dict[str, Any]) -> None:
    settings = pybuild.build(f"FROM scratch AS first\n{lines}\n").settings
    got = {name: settings.get(name) for name in expected}
    if "Env" in expected and not expected["Env"][0].startswith("PATH="):
        got["Env"] = [item for item in settings["Env"] if not item.startswith("PATH=")]
    assert got == expected


ARGS: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "T46-global-hidden": ("ARG v=1\nFROM scratch\nENV o=[$v]", [], {"o": "[]"}),
    "T46-redeclared": ("ARG v=1\nFROM scratch\nARG v\nENV o=$v", [], {"o": "1"}),
    "T46-stage-default-wins": ("ARG v=1\nFROM scratch\nARG v=2\nENV o=$v", [], {"o": "2"}),
    "T46-build-arg-wins": ("ARG v=1\nFROM scratch\nARG v=2\nENV o=$v", ["--build-arg", "v=3"], {"o": "3"}),
    "T46-undeclared": ("FROM scratch\nENV o=[$v]", ["--build-arg", "v=3"], {"o": "[]"}),
    "T48-global-from-global": ("ARG a=1\nARG b=$a$a\nFROM scratch\nARG b\nENV o=$b", [], {"o": "11"}),
    "T49-child-stage": ("FROM scratch AS p\nARG v=1\nFROM p\nENV o=$v", [], {"o": "1"}),
    "platform": (
        "FROM scratch\nARG TARGETOS\nARG TARGETSTAGE\nENV o=$TARGETOS/$TARGETSTAGE/[$TARGETARCH]",
        [],
        {"o": "linux/default/[]"},
    ),
    "default-not-needed": ("FROM scratch\nARG v=${no:?never}\nENV o=$v", ["--build-arg", "v=3"], {"o": "3"}),
    "global-default-not-needed": (
        "ARG v=${no:?never}\nFROM scratch\nARG v\nENV o=$v",
        ["--build-arg", "v=3"],
        {"o": "3"},
    ),
    "several": ("FROM scratch\nARG a=1 b=2 c\nENV o=$a$b[$c]", [], {"o": "12[]"}),
}


@pytest.mark.parametrize(("dockerfile", "options", "expected"), ARGS.values(), ids=ARGS.keys())
def test_args(pybuild: Pybuild, dockerfile: str, options: list[str], expected: dict[str, str]) -> None:
    env = pybuild.build(dockerfile + "\n", None, *options).env
    assert {name: env.get(name) for name in expected} == expected


def test_build_arg_from_the_environment(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM scratch\nARG a\nARG b=no\nENV o=$a$b\n")
    archive = pybuild.work / "o.tar"
    options = ("--build-arg", "a", "--build-arg", "b", "-o", f"type=oci,dest={archive}")
    pybuild(*options, context, env={"a": "yes"}).ok()
    from oci import read_image

    assert read_image(archive).env["o"] == "yesno"


def test_run_sees_args_and_env(pybuild: Pybuild) -> None:
    """T44, T45, T109: what a RUN's environment holds."""
    image = pybuild.build(
        "FROM busybox\nENV X=1 E=2\nARG X=3\nARG unset\nARG empty=\nRUN env > /env\n", None, "--network=none"
    )
    env = dict(line.split("=", 1) for line in image.read("env").decode().splitlines())
    assert (env["X"], env["E"], env["empty"]) == ("3", "2", "")
    assert "unset" not in env
    assert env["HOME"] == "/root" and env["PATH"] == PATH
    assert image.env["X"] == "1"


def test_proxy_args_are_no_part_of_key_or_history(pybuild: Pybuild) -> None:
    """T98: a proxy reaches RUN undeclared, and its value does not change the key."""
    context = pybuild.context("FROM busybox\nRUN echo $http_proxy > /p\n")
    first = pybuild("--network=none", "--build-arg", "http_proxy=http://a", context).ok()
    again = pybuild("--network=none", "--build-arg", "http_proxy=http://b", context).ok()
    assert (first.executed, again.executed, again.cached) == (1, 0, 2)
    image = pybuild.export(context, "--network=none", "--build-arg", "http_proxy=http://c")
    assert image.read("p") == b"http://a\n"
    assert not any("http:" in str(line) for line in image.history)
    assert "not declare" not in again.err and "no ARG" not in again.err


def test_proxies_reach_run_in_both_spellings(pybuild: Pybuild) -> None:
    """And win over what the image says, without becoming part of it."""
    image = pybuild.build(
        "FROM busybox\nENV http_proxy=image\nRUN env > /env\n",
        None,
        "--network=none",
        "--build-arg",
        "HTTP_PROXY=given",
        "--no-cache",
    )
    env = dict(line.split("=", 1) for line in image.read("env").decode().splitlines())
    assert (env["http_proxy"], env["HTTP_PROXY"]) == ("given", "given")
    assert image.env["http_proxy"] == "image" and "HTTP_PROXY" not in image.env


def test_path_of_a_base_that_has_none(pybuild: Pybuild) -> None:
    """T61, T109: it gets the default, before anything is expanded."""
    assert pybuild.build("FROM busybox\n").settings["Env"] == [f"PATH={PATH}"]
    assert pybuild.build("FROM busybox\nENV a=1 PATH=$PATH:/x\n").settings["Env"] == [
        f"PATH={PATH}:/x",
        "a=1",
    ]


def test_history_quotes_as_go_does(pybuild: Pybuild) -> None:
    """T88."""
    image = pybuild.build('FROM scratch\nCMD ["a\\u0001\\t\\u00a0\\u2028 \\"é😀\\\\"]\n')
    assert image.history[-1]["created_by"] == 'CMD ["a\\x01\\t\\u00a0\\u2028 \\"é😀\\\\"]'
    image = pybuild.build("FROM scratch\nEXPOSE 8-11 443/udp\n")
    assert image.history[-1]["created_by"] == "EXPOSE [443/udp 8/tcp 9/tcp 10/tcp 11/tcp]"


def test_labels_of_the_command_line_win(pybuild: Pybuild) -> None:
    """T50."""
    options = ("--label", "a=cli", "--label", "b=", "--label", "c")
    image = pybuild.build("FROM scratch\nLABEL a=file d=kept\n", None, *options)
    assert image.settings["Labels"] == {"a": "cli", "b": "", "c": "", "d": "kept"}


def test_history(pybuild: Pybuild) -> None:
    """T86 to T88: BuildKit's own words, a layer for each line that is not empty."""
    image = pybuild.build(
        "FROM busybox\nARG foo=bar\nARG foo=bar2\nENV e=1\nARG bar=123\nRUN true\nRUN [\"true\", \"x\"]\n"
        "COPY --chown=1:2 --chmod=755 a /b\nWORKDIR /w\nWORKDIR /\nEXPOSE 2375 1234/udp\n"
        "LABEL a=b\nUSER 5\nENTRYPOINT [\"/e\"]\nCMD [\"a\", \"b\"]\n",
        {"a": "1"},
        "--network=none",
    )  # fmt: skip
    mine = [line for line in image.history if line.get("comment") == "buildkit.dockerfile.v0"]
    assert [(line["created_by"], line.get("empty_layer", False)) for line in mine] == [
        ("ARG foo=bar", True),
        ("ARG foo=bar2", True),
        ("ENV e=1", True),
        ("ARG bar=123", True),
        ("RUN |2 foo=bar2 bar=123 /bin/sh -c true # buildkit", False),
        ("RUN |2 foo=bar2 bar=123 true x # buildkit", False),
        ("COPY --chown=1:2 --chmod=755 a /b # buildkit", False),
        ("WORKDIR /w", False),
        ("WORKDIR /", True),
        ("EXPOSE [1234/udp 2375/tcp]", True),
        ("LABEL a=b", True),
        ("USER 5", True),
        ('ENTRYPOINT ["/e"]', True),
        ('CMD ["a" "b"]', True),
    ]
    assert image.config["created"] == image.history[-1]["created"]
    assert all(line["created"].endswith("Z") for line in image.history)


def test_platform_and_shape(pybuild: Pybuild) -> None:
    """T91, T93: what runtimes look at."""
    image = pybuild.build("FROM busybox\n", None, "-t", "a/b:1", "-t", "c")
    assert (image.config["os"], image.config["architecture"]) == ("linux", "amd64")
    assert image.manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    names = [d["annotations"]["io.containerd.image.name"] for d in image.index["manifests"]]
    assert names == ["docker.io/a/b:1", "docker.io/library/c:latest"]
    refs = [d["annotations"]["org.opencontainers.image.ref.name"] for d in image.index["manifests"]]
    assert refs == ["1", "latest"]


def test_config_of_the_base_is_inherited(pybuild: Pybuild) -> None:
    """T70, T74: from an image of the store and from a stage alike."""
    base = pybuild.context('FROM busybox\nENV a=1\nUSER 5\nWORKDIR /w\nLABEL l=1\nCMD ["c"]\nEXPOSE 1\n')
    pybuild("-t", "inherit-base", "--network=none", base).ok()
    image = pybuild.build("FROM inherit-base AS s\nFROM s\nENV b=2\nWORKDIR v\nLABEL m=2\nEXPOSE 2\n")
    settings = image.settings
    assert (image.env["a"], image.env["b"], settings["User"], settings["Cmd"]) == ("1", "2", "5", ["c"])
    assert settings["WorkingDir"] == "/w/v"
    assert settings["Labels"] == {"l": "1", "m": "2"}
    assert settings["ExposedPorts"] == {"1/tcp": {}, "2/tcp": {}}
    lines = [line["created_by"] for line in image.history]
    assert lines.index("ENV a=1") < lines.index("ENV b=2")


REFUSED: dict[str, tuple[str, str]] = {
    "unknown-instruction": ("FROM scratch\nRUM true\n", "did you mean RUN"),
    "T47-required": ("FROM busybox:${tag:?say which}\n", "say which"),
    "T51-port": ("FROM scratch\nEXPOSE 99999\n", "99999"),
    "T65-later": (
        "FROM scratch AS a\nCOPY --from=b /x /\nFROM scratch AS b\nFROM a\n",
        'cannot copy from stage "b", it needs to be defined before current stage "a"',
    ),
    "T65-self": ("FROM scratch AS a\nCOPY --from=a /x /\n", "a"),
    "T65-index": ("FROM scratch\nCOPY --from=5 /x /\n", "invalid stage index 5"),
    "T51-host-port": ("FROM scratch\nEXPOSE x:80\n", "invalid hostPort: x"),
    "T51-host-address": ("FROM scratch\nEXPOSE a:1:80\n", "invalid IP address"),
    "T51-unequal-ranges": ("FROM scratch\nEXPOSE 1-3:80-81\n", "invalid ranges specified for container and host Ports: 80-81 and 1-3"),
    "flag-case": ("FROM scratch\nCOPY --CHOWN=1 a b\n", "unknown flag: --CHOWN"),
    "nul": ("FROM scratch\nRUN a\0b\n", "NUL"),
    "nul-in-json": ('FROM scratch\nCMD ["a\\u0000b"]\n', "NUL"),
    "T57-not-strings": ("FROM scratch\nCMD [1]\n", "arrays must be comprised of strings only"),
    "T68-only-args": ("ARG a=1\n", "contains no stages to build"),
    "T68-no-stage": ("# nothing\n", "file with no instructions"),
    "before-from": ("RUN true\nFROM scratch\n", "FROM"),
    "from-variable": ("ARG s=x\nFROM scratch\nCOPY --from=$s a b\n", "variable expansion is not supported for --from"),
    "chmod-flag": ("FROM scratch\nCOPY --chmood=1 a b\n", "did you mean chmod"),
    "unterminated-quote": ('FROM scratch\nENV a="b\n', "unexpected end of statement"),
    "bad-substitution": ("FROM scratch\nENV a=${}\n", "bad substitution"),
    "later-issue": ("FROM scratch\nRUN true\nRUN --device=x true\n", "RUN --device is not supported yet"),
    "no-shell": ("FROM scratch\nRUN true\n", "/bin/sh"),
}  # fmt: skip


@pytest.mark.parametrize(("dockerfile", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(pybuild: Pybuild, dockerfile: str, says: str) -> None:
    said = pybuild.refuse(dockerfile, None, "--network=none")
    assert says in said
    if "FROM" in dockerfile:
        assert "^" in said and ">>>" in said


def test_a_typo_in_the_target(pybuild: Pybuild) -> None:
    """T68."""
    said = pybuild.refuse("FROM scratch AS build\n", None, "--target", "biuld")
    assert 'target stage "biuld" could not be found' in said and "did you mean build" in said


def test_argument_of_what_is_not_built(pybuild: Pybuild) -> None:
    """A file knows its arguments, whichever of its stages a target or platform needs."""
    text = "FROM busybox AS amd64\nARG X\nFROM busybox AS other\nARG Y\nFROM scratch\nLABEL a=b\n"
    done = pybuild("--build-arg=X=1", "--build-arg=Y=1", "--build-arg=Z=1", pybuild.context(text)).ok()
    assert "build arguments that no ARG instruction declares: Z\n" in done.err


def test_unused_build_arg_is_said(pybuild: Pybuild) -> None:
    said = pybuild("--build-arg", "verison=1", pybuild.context("FROM scratch\nARG version\n")).ok().err
    assert "verison" in said


def test_stage_env_comes_back_over_arg(pybuild: Pybuild) -> None:
    """T44, T49: in its own stage a later ARG wins, in one that is made from it the image's ENV."""
    text = "FROM busybox AS a\nENV X=1\nARG X=2\nLABEL own=$X\nFROM a\nLABEL x=$X\n"
    assert pybuild.build(text).settings["Labels"] == {"own": "2", "x": "1"}


def test_target_stage(pybuild: Pybuild) -> None:
    """The last stage's name where no target is given."""
    text = "FROM busybox AS a\nARG TARGETSTAGE\nLABEL s=$TARGETSTAGE\n"
    assert pybuild.build(text).settings["Labels"] == {"s": "a"}
    assert pybuild.build(text + "FROM a\nARG TARGETSTAGE\nLABEL s=$TARGETSTAGE\n").settings["Labels"] == {
        "s": "default"
    }


def test_empty_settings_are_left_out(pybuild: Pybuild) -> None:
    settings = pybuild.build("FROM busybox\nUSER a\nUSER $none\nEXPOSE $none\n").settings
    assert "User" not in settings and "ExposedPorts" not in settings


def test_run_without_a_command(pybuild: Pybuild) -> None:
    image = pybuild.build("FROM busybox\nRUN\n", None, "--network=none")
    assert image.history[-1]["created_by"] == "RUN /bin/sh -c  # buildkit"


def test_times_of_a_base(pybuild: Pybuild) -> None:
    """T89: an epoch dates what is new; an image with nothing new has its base's time, and its lines."""
    base = pybuild.build("FROM busybox\n")
    assert base.config.get("created") == base.history[-1].get("created")
    again = pybuild.export(pybuild.context("FROM busybox\n"), "--build-arg=SOURCE_DATE_EPOCH=1000")
    assert again.config == base.config
    new = pybuild.export(pybuild.context("FROM busybox\nLABEL a=b\n"), "--build-arg=SOURCE_DATE_EPOCH=1000")
    assert new.config["created"] == "1970-01-01T00:16:40Z"


def test_epoch_of_a_global_argument(pybuild: Pybuild) -> None:
    image = pybuild.build("ARG SOURCE_DATE_EPOCH=1000\nFROM scratch\nCOPY f /\n", {"f": "1"})
    assert image.config["created"] == "1970-01-01T00:16:40Z" and image.root()["f"][0].mtime > 1000
    image = pybuild.build("ARG SOURCE_DATE_EPOCH=context\nFROM scratch\nCOPY f /\n", {"f": "1"})
    assert image.config["created"] > "2020"
    assert "not a number" in pybuild.refuse("ARG SOURCE_DATE_EPOCH=x\nFROM scratch\n")


def test_proxies_of_dockers_configuration(pybuild: Pybuild) -> None:
    """Steps get them in both spellings, as from docker; what the command line says goes before."""
    default = {"httpProxy": "http://me:pw@p:1", "noProxy": "a.test", "allProxy": "", "ftpProxy": 5, "x": "y"}
    config = pybuild.work / "docker/config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"proxies": {"default": default, "tcp://h": {"httpsProxy": "http://no"}}}))
    env = {"DOCKER_CONFIG": str(config.parent), "HTTPS_PROXY": "http://outside"}
    context = pybuild.context("FROM busybox\nRUN env | grep -i _proxy | sort > /p\n")
    given = "--build-arg=no_proxy=b.test"
    shown = {}
    for number, more in enumerate(((), (given,))):
        name = f"proxies{number}"
        pybuild("--network=none", "-t", name, "--no-cache", *more, context, env=env).ok()
        shown[number] = pybuild("run", name, "cat", "/p").ok().out
    http = "HTTP_PROXY=http://me:pw@p:1\nNO_PROXY=a.test\nhttp_proxy=http://me:pw@p:1\nno_proxy=a.test\n"
    assert shown == {0: http, 1: http.replace("a.test", "b.test")}
    config.write_text("{")
    pybuild("--network=none", "-t", "p", "--no-cache", context, env=env).ok()
    assert pybuild("run", "p", "cat", "/p").ok().out == ""


@pytest.mark.parametrize(
    ("env", "given", "value"),
    [
        ("1000", "", "1000"), ("1000", "2000", "2000"), ("", "", "unset"), ("", "3000", "3000"),
        ("context", "", "unset"), ("1000", "context", "unset"),
    ],
)  # fmt: skip
def test_epoch_as_argument(pybuild: Pybuild, env: str, given: str, value: str) -> None:
    """T89: ARG holds the time that the environment gives, as if it were given as a build argument."""
    context = pybuild.context("FROM scratch\nARG SOURCE_DATE_EPOCH\nLABEL a=${SOURCE_DATE_EPOCH-unset}\n")
    options = [f"--build-arg=SOURCE_DATE_EPOCH={given}"] if given else []
    archive = pybuild.work / "export.tar"
    pybuild(*options, "-o", archive, context, env={"SOURCE_DATE_EPOCH": env} if env else {}).ok()
    assert read_image(archive).config["config"]["Labels"]["a"] == value


@pytest.mark.parametrize(
    "text", ["FROM bad:Name:x AS u\n", "FROM busybox AS u\nCOPY --from=bad:Name:x a /\n",
             "FROM busybox AS u\nRUN --mount=from=BAD,target=/x true\n"],
)  # fmt: skip
def test_names_of_what_is_not_needed(pybuild: Pybuild, text: str) -> None:
    """T66: a stage that nothing needs is not built, but its names have to be names."""
    said = pybuild.refuse(f"{text}FROM scratch\nLABEL a=b\n")
    assert "neither a stage of this file nor an image name" in said and "Dockerfile:" in said


def with_history(layout: Path, history: list[dict[str, Any]] | None, **settings: Any) -> None:
    """Give the one image of an OCI layout another history, and other settings."""
    blobs = layout / "blobs/sha256"

    def stored(value: Any) -> dict[str, Any]:
        data = json.dumps(value).encode()
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    def read(item: dict[str, Any]) -> Any:
        return json.loads((blobs / item["digest"][7:]).read_bytes())

    index = json.loads((layout / "index.json").read_text())
    manifest = read(index["manifests"][0])
    config = {**read(manifest["config"]), "history": history}
    config["config"] = {**config["config"], **settings}
    if history is None:
        del config["history"]
    manifest["config"] |= stored(config)
    index["manifests"][0] |= stored(manifest)
    (layout / "index.json").write_text(json.dumps(index))


LAYER, EMPTY = {"created_by": "layer"}, {"created_by": "empty", "empty_layer": True}
HISTORIES: list[tuple[list[dict[str, Any]] | None, str]] = [
    (None, "LL"), ([], "LL"), ([EMPTY], "eLL"), ([LAYER], "LL"), ([LAYER, EMPTY], "LeL"), ([LAYER, LAYER], "LL"),
    ([LAYER, LAYER, LAYER], "LLe"), ([EMPTY, LAYER, EMPTY, LAYER, LAYER, LAYER], "eLeLee"),
]  # fmt: skip


def test_histories_that_do_not_fit(pybuild: Pybuild, tmp_path: Path) -> None:
    """T87: as many lines have a layer as there are layers, whatever the base says of its own."""
    context = pybuild.context("FROM scratch\nCOPY a /\nCOPY b /\n", {"a": "1", "b": "2"})
    layout = tmp_path / "layout"
    pybuild("-o", f"type=oci,tar=false,dest={layout}", context).ok()
    child = pybuild.context("FROM base\nLABEL a=b\nCOPY c /\n", {"c": "3"}, "child")
    for history, shape in HISTORIES:
        with_history(layout, history)
        image = pybuild.export(child, f"--build-context=base=oci-layout://{layout}")
        found = "".join("e" if line.get("empty_layer") else "L" for line in image.history)
        assert found == shape + "eL", history
        assert all(line["created"] for line in image.history) and len(image.layers) == found.count("L")


@pytest.mark.parametrize("entry", ["=x", "NAME=a\0b", "NA\0ME=x"])
def test_variable_that_no_process_can_have(
    pybuild: Pybuild, busybox: Path, tmp_path: Path, entry: str
) -> None:
    layout = tmp_path / "layout"
    pybuild("-o", f"type=oci,tar=false,dest={layout}", pybuild.context("FROM busybox\nLABEL a=b\n")).ok()
    with_history(layout, [], Env=["PATH=/bin", entry])
    child = pybuild.context("FROM base\nRUN true\n", None, "child")
    said = pybuild("--network=none", f"--build-context=base=oci-layout://{layout}", child).failed().err
    assert f"the environment variable {entry!r} has" in said and "Dockerfile:2" in said
