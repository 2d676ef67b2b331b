"""The table of kinds: which module makes the steps of which operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

from builder.copy.context_source import ContextSource
from builder.environment import Environment
from builder.images.lazy_layers import Layers
from builder.plan.ops import CopyFiles, FetchGit, FetchUrl, Files, FromImage, MakeDir, RunCommand
from builder.run.cache_mounts import CacheMounts
from builder.run.containers import Containers
from builder.steps.base import BaseImage, FetchedFiles
from builder.steps.contents import StageContents
from builder.steps.copy import Copy
from builder.steps.fetch_git import GitDownload
from builder.steps.fetch_url import UrlDownload
from builder.steps.kind import ReadyStep, StepKind
from builder.steps.run import Run
from builder.steps.workdir import Workdir
from grammar.structs import struct


@struct
class Kinds:
    """Gives each step what its kind uses. ``contexts`` are the directories to copy from, by their names."""

    environment: Environment
    layers: Layers
    contexts: Mapping[str, ContextSource]
    contents: StageContents
    containers: Containers
    caches: CacheMounts

    def of(self, ready: ReadyStep, output: Callable[[bytes], None]) -> StepKind:
        """Return the step as its kind. *output* gets what a process of the step writes."""
        op = ready.step.op
        match op:
            case FromImage():
                return BaseImage(op, self.layers)
            case Files():
                return FetchedFiles(op)
            case FetchUrl():
                return UrlDownload(op, self.environment, ready.fresh)
            case FetchGit():
                return GitDownload(op, self.environment, ready.fresh)
            case MakeDir():
                return Workdir(op, ready, self.layers)
            case CopyFiles():
                return Copy(
                    op=op,
                    ready=ready,
                    contexts=self.contexts,
                    layers=self.layers,
                    contents=self.contents,
                    packer=self.environment.packer,
                )
            case RunCommand():
                return Run(
                    op=op,
                    ready=ready,
                    environment=self.environment,
                    layers=self.layers,
                    contents=self.contents,
                    containers=self.containers,
                    caches=self.caches,
                    output=output,
                )
            case _:
                assert_never(op)
