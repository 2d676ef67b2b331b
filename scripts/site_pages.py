"""Pages of the documentation site that are made from the code and from files outside of docs/.

mkdocs calls ``on_files`` and ``on_page_markdown``. Run as a program, this brings the generated part of
docs/rules up to date:

    scripts/site_pages.py [--check]
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "https://git.example.com/pybuild/pybuild/src/main"
# Files outside of docs/, and the names of their pages.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security-policy.md",
    "benchmarks/README.md": "benchmarks.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to *files* (mkdocs' hook)."""
    from mkdocs.structure.files import File

    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=moved(source)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, **_context: object) -> str:
    """Return *markdown* with the bars in code of tables as mkdocs reads them: unescaped."""
    code = re.compile(r"`[^`]*`")
    lines = markdown.split("\n")
    return "\n".join(
        code.sub(lambda found: found[0].replace("\\|", "|"), line) if line.startswith("|") else line
        for line in lines
    )


def moved(source: str) -> str:
    """Return the text of *source* with its links as they are in the root of the site."""

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if path in OUTSIDE:
            path = OUTSIDE[path]
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        else:
            path = f"{SOURCE}/{path}"
        return f"]({path}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\]\((?![a-z]+:)([^)\s#]+(?:#[^)]*)?)\)", link, (ROOT / source).read_text())


def commands_page() -> str:
    """Return a page with the table of commands, and the help of each as the program prints it."""
    sys.path.insert(0, str(ROOT))
    from builder.cli.command_table import COMMANDS, load_command

    os.environ["COLUMNS"] = "100"  # argparse reads it
    rows = [f"| [{command.name}](#pybuild-{command.name}) | {command.about} |" for command in COMMANDS]
    sections = [
        f"## pybuild {command.name}\n\n```text\n{load_command(command).parser().format_help().strip()}\n```\n"
        for command in COMMANDS
    ]
    head = ["# Commands", "", "What `pybuild COMMAND --help` prints.", "", "| command | |", "| --- | --- |"]
    return "\n".join([*head, *rows, "", *sections])


def rules_page(text: str) -> str:
    """Return *text* of docs/rules/README.md with the table of rules made from the code."""
    sys.path.insert(0, str(ROOT))
    from grammar.lint.rules import RULES

    rows = []
    for rule in RULES.values():
        note = " (experimental)" * rule.experimental
        rows.append(f"| [{rule.name}]({rule.page}.md) | {rule.description}{note} |")
    table = "\n".join(["| rule | finding |", "| --- | --- |", *rows])
    before, after = text.split("<!-- rules -->\n")[0], text.split("<!-- end -->")[1]
    return f"{before}<!-- rules -->\n{table}\n<!-- end -->{after}"


def rule_page(name: str, text: str) -> str:
    """Return *text* of the page of the rule *name* with its title, summary and source from the code."""
    sys.path.insert(0, str(ROOT))
    from grammar.lint.rules import RULES

    rule = RULES[name]
    body = text.split("\n\n", 2)[2].rsplit("\n\n", 1)[0]
    source = f"BuildKit's rule: <{rule.url}>" if rule.url else "A rule of pybuild's own."
    return f"# {rule.name}\n\n{rule.description.rstrip('.')}.\n\n{body}\n\n{source}\n"


def main(check: bool) -> int:
    """Write docs/rules anew; with *check*, only say which pages are out of date."""
    pages = {path: path.read_text() for path in (ROOT / "docs/rules").glob("*.md")}
    stale = []
    for path, text in pages.items():
        name = text.split("\n", 1)[0].removeprefix("# ")
        made = rules_page(text) if path.name == "README.md" else rule_page(name, text)
        if made != text:
            stale.append(path.name)
            if not check:
                path.write_text(made)
    if check and stale:
        print(f"out of date: {', '.join(sorted(stale))}; run scripts/site_pages.py", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--check"]))
