"""What mkdocs needs to be told: pages show stored results, and name files of the repository that are no pages."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]+)(#[^)]*)?\)")
START = "start/"


def on_files(files, config):
    """Adds the stored results to the site, and makes the first page its front."""
    for path in sorted((ROOT / RESULTS).rglob("*")):
        if path.suffix in (".png", ".csv") and "curves" not in str(path.parent):
            files.append(File(str(path.relative_to(ROOT)), str(ROOT), config["site_dir"], config["use_directory_urls"]))
    front = f'<meta http-equiv="refresh" content="0; url={START}">'
    files.append(File.generated(config, "index.md", content=front))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that leave docs/: to a stored result as it lies in the site, to any other file by its name alone."""

    def mend(match):
        picture, text, path, _ = match.groups()
        if not (ROOT / path).exists():
            raise ValueError(f"{page.file.src_path}: ../{path} is not there.")
        return f"{picture}[{text}]({path})" if path.startswith(RESULTS) and (ROOT / path).is_file() else f"{text} (`{path}`)"

    return LINK.sub(mend, markdown)
