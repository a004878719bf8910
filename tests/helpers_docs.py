"""The pages of the documents, their code and the commands in them, for the tests of what they say."""

import re
from pathlib import Path

import pytest
from helpers import ROOT
from helpers_layout import ROOMS

FILES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
PAGES["lessons/README.md"] = (ROOT / "lessons" / "README.md").read_text(encoding="utf-8")
README = PAGES["README.md"]
FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize("page", PAGES)


def path_of(page: str) -> Path:
    return ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", FENCED.sub("", text))


def commands(text: str) -> list[str]:
    """What a reader may type: lines of fenced blocks, put together again where \\ breaks them, and inline code."""
    fenced = "\n".join(FENCED.findall(text)).replace("\\\n", " ").splitlines()
    return [" ".join(command.split()) for command in [*fenced, *inline_code(text)]]
