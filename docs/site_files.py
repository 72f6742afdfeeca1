"""Hook of mkdocs.yml: the site's tree is the repository's, with its pages and every file that a page links to."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "records/**/README.md"]
_LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the repository's pages in the place of docs/; the theme's files stay."""
    pages = sorted({page for pattern in PAGES for page in ROOT.glob(pattern)})
    linked = {target for page in pages for target in links_of(page)} - set(pages) | {ROOT / "docs" / "site.css"}
    chosen = Files([file for file in files if file.src_dir != config.docs_dir])
    for path in [*pages, *sorted(linked)]:
        name = path.relative_to(ROOT).as_posix()
        if path.is_dir():
            chosen.append(File.generated(config, f"{name}/index.md", content=listing(path)))
        else:
            chosen.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return chosen


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Point links to folders at their listings."""
    name = page.file.src_uri  # type: ignore[attr-defined]

    def follow(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link[1]))
        index = f"{target}/index.md"
        return (
            link[0].replace(link[1], f"{link[1].rstrip('/')}/index.md") if files.get_file_from_path(index) else link[0]
        )

    return _LINK.sub(follow, markdown)


def links_of(page: Path) -> set[Path]:
    """Files and folders of the repository that a page links to."""
    found = (page.parent / link for link in _LINK.findall(page.read_text(encoding="utf-8")))
    return {target.resolve() for target in found if target.exists()}


def listing(folder: Path) -> str:
    """A page with the files of a folder."""
    names = [f"`{path.name}`" for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("_")]
    return f"# {folder.name}/\n\n" + "\n".join(f"- {name}" for name in names) + "\n"
