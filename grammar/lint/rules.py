"""The rules of build checks, as values: name, texts, page.

Names and texts are BuildKit's; ``own`` rules are about what else surprises people. docs/rules has a page
for each.
"""

from __future__ import annotations

import re

from grammar.structs import struct

_BUILDKIT_PAGES = "https://docs.docker.com/go/dockerfile/rule/"


@struct
class Rule:
    """One check. ``message`` is a format string. An ``experimental`` rule must be asked for.

    ``line_by_line`` rules need only the lines up to the one they report. ``own`` rules are not BuildKit's.
    """

    name: str
    description: str
    message: str
    experimental: bool = False
    own: bool = False
    line_by_line: bool = False

    @property
    def page(self) -> str:
        """The name of its page in docs/rules: ``from-as-casing``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=JSON)(?=[A-Z])", "-", self.name).lower()

    @property
    def url(self) -> str:
        """Where BuildKit documents it; "" for rules of our own."""
        return "" if self.own else f"{_BUILDKIT_PAGES}{self.page}/"


STAGE_NAME_CASING = Rule(
    "StageNameCasing",
    "Stage names should be lowercase",
    "Stage name '{0}' should be lowercase",
    line_by_line=True,
)
FROM_AS_CASING = Rule(
    "FromAsCasing",
    "The 'as' keyword should match the case of the 'from' keyword",
    "'{1}' and '{0}' keywords' casing do not match",
    line_by_line=True,
)
NO_EMPTY_CONTINUATION = Rule(
    "NoEmptyContinuation",
    "Empty continuation lines will become errors in a future release",
    "Empty continuation line",
    line_by_line=True,
)
CONSISTENT_INSTRUCTION_CASING = Rule(
    "ConsistentInstructionCasing",
    "All commands within the Dockerfile should use the same casing (either upper or lower)",
    "Command '{0}' should match the case of the command majority ({1})",
)
DUPLICATE_STAGE_NAME = Rule(
    "DuplicateStageName",
    "Stage names should be unique",
    'Duplicate stage name "{0}", stage names should be unique',
)
RESERVED_STAGE_NAME = Rule(
    "ReservedStageName",
    "Reserved words should not be used as stage names",
    'Stage name should not use the same name as reserved stage "{0}"',
)
JSON_ARGS_RECOMMENDED = Rule(
    "JSONArgsRecommended",
    "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
    "JSON arguments recommended for {0} to prevent unintended behavior related to OS signals",
)
MAINTAINER_DEPRECATED = Rule(
    "MaintainerDeprecated",
    "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
    "Maintainer instruction is deprecated in favor of using label",
    line_by_line=True,
)
UNDEFINED_ARG_IN_FROM = Rule(
    "UndefinedArgInFrom",
    "FROM command must use declared ARGs",
    "FROM argument '{0}' is not declared{1}",
)
WORKDIR_RELATIVE_PATH = Rule(
    "WorkdirRelativePath",
    "Relative workdir without an absolute workdir declared within the build can have unexpected "
    "results if the base image changes",
    'Relative workdir "{0}" can have unexpected results if the base image changes',
)
UNDEFINED_VAR = Rule(
    "UndefinedVar",
    "Variables should be defined before their use",
    "Usage of undefined variable '${0}'{1}",
)
MULTIPLE_INSTRUCTIONS_DISALLOWED = Rule(
    "MultipleInstructionsDisallowed",
    "Multiple instructions of the same type should not be used in the same stage",
    "Multiple {0} instructions should not be used in the same stage because only the last one will be used",
)
LEGACY_KEY_VALUE_FORMAT = Rule(
    "LegacyKeyValueFormat",
    "Legacy key/value format with whitespace separator should not be used",
    '"{0} key=value" should be used instead of legacy "{0} key value" format',
)
INVALID_BASE_IMAGE_PLATFORM = Rule(
    "InvalidBaseImagePlatform",
    "Base image platform does not match expected target platform",
    'Base image {0} was pulled with platform "{2}", expected "{1}" for current build',
)
REDUNDANT_TARGET_PLATFORM = Rule(
    "RedundantTargetPlatform",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
    "Setting platform to predefined {0} in FROM is redundant as this is the default behavior",
)
SECRETS_USED_IN_ARG_OR_ENV = Rule(
    "SecretsUsedInArgOrEnv",
    "Sensitive data should not be used in the ARG or ENV commands",
    'Do not use ARG or ENV instructions for sensitive data ({0} "{1}")',
)
INVALID_DEFAULT_ARG_IN_FROM = Rule(
    "InvalidDefaultArgInFrom",
    "Default value for global ARG results in an empty or invalid base image name",
    "Default value for ARG {0} results in empty or invalid base image name",
)
FROM_PLATFORM_FLAG_CONST_DISALLOWED = Rule(
    "FromPlatformFlagConstDisallowed",
    "FROM --platform flag should not use a constant value",
    'FROM --platform flag should not use constant value "{0}"',
)
COPY_IGNORED_FILE = Rule(
    "CopyIgnoredFile",
    "Attempting to Copy file that is excluded by .dockerignore",
    'Attempting to {0} file "{1}" that is excluded by .dockerignore',
)
INVALID_DEFINITION_DESCRIPTION = Rule(
    "InvalidDefinitionDescription",
    "Comment for build stage or argument should follow the format: `# <arg/stage name> "
    "<description>`. If this is not intended to be a description comment, add an empty line or "
    "comment between the instruction and the comment.",
    "Comment for {0} should follow the format: `# {1} <description>`",
    experimental=True,
    line_by_line=True,
)
EXPOSE_PROTO_CASING = Rule(
    "ExposeProtoCasing",
    "Protocol in EXPOSE instruction should be lowercase",
    "Defined protocol '{0}' in EXPOSE instruction should be lowercase",
)
EXPOSE_INVALID_FORMAT = Rule(
    "ExposeInvalidFormat",
    "IP address and host-port mapping should not be used in EXPOSE instruction. This will become "
    "an error in a future release",
    "EXPOSE instruction should not define an IP address or host-port mapping, found '{0}'",
)
COPY_SEVERAL_TO_ONE_FILE = Rule(
    "CopySeveralToOneFile",
    "Several sources are copied to one file, of which only the last stays",
    "{0} has several sources, and its destination {1} does not end in a slash",
    own=True,
)
ARG_HIDES_ENV = Rule(
    "ArgHidesEnv",
    "An ARG of the name of an ENV changes what RUN sees, but not the image",
    "ARG {0} hides the ENV {0} from later instructions of this stage, not from the image",
    own=True,
)

RULES = {rule.name: rule for rule in list(globals().values()) if isinstance(rule, Rule)}
