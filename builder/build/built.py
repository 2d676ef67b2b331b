"""What a build made for one platform."""

from __future__ import annotations

from collections.abc import Sequence

from builder.build.solve import Solution
from builder.oci.model import ImageConfig, Platform, host
from builder.plan.graph import Plan
from cache.digest import Digest
from grammar.structs import struct


@struct
class Built:
    """The image for one platform, its plan, and the results of the steps."""

    image: Digest
    config: ImageConfig
    plan: Plan
    solution: Solution

    @property
    def platform(self) -> Platform:
        return self.config.platform


def first_of(built: Sequence[Built]) -> Built:
    """Return the image for this machine's platform, otherwise the first."""
    return next((one for one in built if one.platform == host()), built[0])
