"""Pages of the documentation site that are made while it is built; named under `hooks` in mkdocs.yml.

- the reference: a page for each module and an index for each room, from the package's own files;
- ``configuration.md``: every field of a run, from the dataclasses;
- ``project/``: files that stand elsewhere in the repository.

Links keep the form they need in the repository, where every page can be read as well; here they are
turned into links of the site.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs_configuration import configuration_page

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"

ELSEWHERE = {
    "experiments/PAPER_INDEX.md": "project/paper_index.md",
    "experiments/LOG.md": "project/log.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changes.md",
}
"""Files of the repository outside docs/ that are pages of the site."""

_REMOTE_SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme would fetch so that search works in pages opened from the file system."""
_LOCAL_SHIM = "assets/iframe-worker/shim.js"

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r":(?:class|func|meth|mod|data):<code>~?([\w.]+)</code>")


def site_page(path: str) -> str | None:
    """Page of the site that shows a file of the repository, both as paths from their roots."""
    return ELSEWHERE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)


def repository_path(page: str) -> str:
    """File of the repository that a page of the site shows."""
    return {shown: path for path, shown in ELSEWHERE.items()}.get(page, f"docs/{page}")


def site_links(markdown: str, page: str) -> str:
    """A page's text with its links between files of the repository turned into links of the site.

    A link to a file that is no page becomes plain text; one to a file that does not exist stays, so that
    the build complains about it.
    """
    folder = posixpath.dirname(repository_path(page))

    def turned(match: re.Match[str]) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        target = posixpath.normpath(posixpath.join(folder, link))
        shown = site_page(target)
        if shown is not None:
            return f"[{text}]({posixpath.relpath(shown, posixpath.dirname(page) or '.')}{anchor})"
        return text if (ROOT / target).exists() else match[0]

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(turned, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(turned, markdown[end:])])


def first_sentence(path: Path) -> str:
    """First line of a module's docstring, empty if it has none."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def public(path: Path) -> list[Path]:
    """Modules and packages below a package that hold something public, those with code first."""
    packages = sorted(p for p in path.iterdir() if (p / "__init__.py").is_file())
    return [*sorted(p for p in path.glob("*.py") if not p.name.startswith("_")), *packages]


def reference() -> tuple[dict[str, str], list[Any]]:
    """Text of every page of the reference by its address, and their part of the navigation."""
    pages: dict[str, str] = {}

    def package(path: Path) -> list[Any]:
        name = ".".join(path.relative_to(SOURCE).parts)
        address = "/".join(["reference", *path.relative_to(SOURCE).parts[1:], "index.md"])
        nav: list[Any] = [address]
        lines = [f"# `{name}`", "", first_sentence(path / "__init__.py"), "", "| module | |", "|---|---|"]
        for member in public(path):
            link = f"{member.stem}.md" if member.is_file() else f"{member.name}/index.md"
            about = first_sentence(member if member.is_file() else member / "__init__.py")
            lines.append(f"| [`{member.stem}`]({link}) | {about.replace('|', chr(92) + '|')} |")
            if member.is_dir():
                nav.append({member.name: package(member)})
                continue
            page = posixpath.join(posixpath.dirname(address), f"{member.stem}.md")
            pages[page] = f"# `{name}.{member.stem}`\n\n::: {name}.{member.stem}\n"
            nav.append({member.stem: page})
        pages[address] = "\n".join(lines) + "\n"
        return nav

    return pages, package(SOURCE / "envrl")


def generated_pages() -> tuple[dict[str, str], list[Any]]:
    """Text of every page that is no file in docs/, and the reference's part of the navigation."""
    pages, nav = reference()
    pages["configuration.md"] = configuration_page()
    for path, page in ELSEWHERE.items():
        pages[page] = (ROOT / path).read_text(encoding="utf-8")
    return pages, nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the reference's navigation."""
    from mkdocs.structure.files import File

    pages, nav = generated_pages()
    for address, text in pages.items():
        files.append(File.generated(config, address, content=text))
    for entry in config.nav or ():
        if "Reference" in entry:
            entry["Reference"] = nav
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links between files into links of the site."""
    if page.file.src_uri.startswith("reference/"):
        return markdown
    return site_links(markdown, page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Turns the roles of docstrings, e.g. :class:`envrl.errors.EnvFault`, into links."""
    return _ROLE.sub(
        lambda m: f'<autoref identifier="{m[1]}" optional><code>{m[1].rpartition(".")[2]}</code></autoref>',
        html,
    )


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Has a page load from the site what the theme would fetch."""
    return output.replace(_REMOTE_SHIM, posixpath.relpath(_LOCAL_SHIM, posixpath.dirname(page.url) or "."))


def on_post_template(output_content: str, template_name: str, **_: Any) -> str:
    """The same for the page shown where there is none."""
    return output_content.replace(_REMOTE_SHIM, f"/{_LOCAL_SHIM}")
