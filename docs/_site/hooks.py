"""What the site has besides docs/: pages of the models, the notebook, and every file that a page links.

A link of a page is written as on disk, so that it works there and in the site alike: a file outside docs/ that is
linked becomes part of the site, Markdown as a page. The pages of the models are made from docstrings and YAML.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the tables of the models are made by the checkout's own code

from recbole_cafe.benchmark import pages  # noqa: E402
from recbole_cafe.benchmark.results import read  # noqa: E402

DOCS = "docs"
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[ ]*$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
LINK = re.compile(r"(?P<before>!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?P<target>[^)\s]+)(?P<after>\))")
ENTRY = re.compile(r"^(?P<key>\w+): *(?P<value>.*?) +# *(?:\((?P<type>\w+)\) )?(?P<text>.*)$")
MORE = re.compile(r"^ {8,}# (?P<text>.*)$")
GROUP = re.compile(r"^# (?P<title>[^#]+)$")

INSIDE = {
    "CaFe": """## What it looks at

Where items are rare, the items' tower looks mostly at the newest item alone, while the intents' tower spreads over the
last few. Above sparse data, below dense data. [Inside CaFe](../../results/figure2/README.md) says how the picture was
made, what it does not show, and has the items by intent.

![Heat maps of the first layer of both towers, on sparse and on dense data](../../results/figure2/attention.png)

"""
}  # model -> a section of its page
# Where a model was measured on the same data as the others: benchmark, data set
MEASURED = (("beyond-rare", "amazon-mix0"), ("table2-small", "amazon-mix0"))


# What the site holds --------------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the models' pages below their own heading."""
    for section in config.nav or ():
        if "Models" in section:
            section["Models"].extend({name: f"models/{name}.md"} for name in models())
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages, and whatever a page links outside docs/."""
    for name in models():
        files.append(File.generated(config, f"models/{name}.md", content=model_page(name)))
    notebook = ROOT / DOCS / "notebook.ipynb"
    files.append(File.generated(config, "notebook.md", content=notebook_page(json.loads(notebook.read_text()))))
    files.append(File.generated(config, "results/index.md", content=results_page()))
    files.append(File.generated(config, "CHANGELOG.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    waiting = [file for file in files if file.src_uri.endswith(".md")]
    while waiting:
        page = waiting.pop()
        for path in linked(page):
            uri = in_site(path)
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
                if uri.endswith(".md"):
                    waiting.append(files.src_uris[uri])
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Links as the site has them; comments are for the tools that make the tables."""
    here = in_repository(page.file.src_uri)

    def changed(prose: str) -> str:
        return LINK.sub(lambda match: match["before"] + site_link(here, match["target"]) + match["after"],
                        COMMENT.sub("", prose))  # fmt: skip

    text = "".join(part if code else changed(part) for code, part in parts(markdown))
    return with_model_links(text) if page.file.src_uri == "models/index.md" else text


def with_model_links(text: str) -> str:
    """The names in the first column of the table of models lead to their pages, which are of the site alone."""

    def linked_names(cell: re.Match[str]) -> str:
        return re.sub(r"`(\w+)`", lambda name: f"[`{name[1]}`]({name[1]}.md)", cell[0])

    names = "|".join(f"`{name}`" for name in models())
    return re.sub(rf"^\| (?:{names})[^|]*", linked_names, text, flags=re.MULTILINE)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Docstrings name things as Sphinx does, :func:`x`; the reference has them as code."""
    return re.sub(r":(?:func|class|meth|mod|attr):(?=<code)", "", html)


def parts(markdown: str) -> Iterator[tuple[bool, str]]:
    """A page cut into what is code and what is not, in order."""
    end = 0
    for match in FENCE.finditer(markdown):
        yield False, markdown[end : match.start()]
        yield True, match[0]
        end = match.end()
    yield False, markdown[end:]


# Links ----------------------------------------------------------------------------------------------------------------


def in_repository(uri: str) -> str:
    """Where a page of the site stands in the repository: docs/x.md of x.md, results/y/README.md of the same."""
    if uri == "CHANGELOG.md" or (uri != "results/index.md" and (ROOT / uri).is_file()):
        return uri
    return f"{DOCS}/{uri}"


def in_site(path: str) -> str:
    """The other way; a notebook is shown as a page."""
    return re.sub(r"\.ipynb$", ".md", path.removeprefix(f"{DOCS}/"))


def resolved(here: str, target: str) -> str | None:
    """The file of the repository, outside docs/ or in it, that a link leads to; None of one that leads elsewhere."""
    if "://" in target or target.startswith(("#", "mailto:", "/")):
        return None
    path = os.path.normpath(PurePosixPath(here).parent / target.partition("#")[0])
    full = ROOT / path
    if full.is_dir():
        inside = (p for p in ("README.md", "report/report.md", "index.md") if (full / p).is_file())
        found = next(inside, None)
        if found is None:
            return f"{DOCS}/results/index.md" if path == "results" else None
        return f"{path}/{found}"
    return path if full.is_file() else None


def site_link(here: str, target: str) -> str:
    """A link of a page as the site has it."""
    path = resolved(here, target)
    if path is None:
        return target
    own = PurePosixPath(in_site(here)).parent
    place = target.partition("#")[2]
    return os.path.relpath(in_site(path), own) + (f"#{place}" if place else "")


def linked(file: File) -> set[str]:
    """The files outside docs/ that a page links."""
    here = in_repository(file.src_uri)
    prose = "".join(part for code, part in parts(file.content_string) if not code)
    found = {resolved(here, match["target"]) for match in LINK.finditer(COMMENT.sub("", prose))}
    return {path for path in found if path and not path.startswith(f"{DOCS}/")}


# Models ---------------------------------------------------------------------------------------------------------------


def models() -> dict[str, Path]:
    """The models and their files, ours first: read from the table of the package, without importing PyTorch."""
    tree = ast.parse((ROOT / "recbole_cafe/model/__init__.py").read_text(encoding="utf-8"))
    (table,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODELS"
    )
    homes = {
        name: ROOT / Path(*home.split(".")[:-1]).with_suffix(".py") for name, home in ast.literal_eval(table).items()
    }
    return dict(sorted(homes.items(), key=lambda pair: (pair[1].parent.name == "peers", pair[0].lower())))


def model_page(name: str) -> str:
    """The page of a model: its module's docstring, what was measured, its keys."""
    file = models()[name]
    source = file.relative_to(ROOT).as_posix()
    head, _, body = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n\n")
    keys = ROOT / f"props/model/{name}.yaml"
    lead = " ".join(head.split()).removeprefix(f"{name}: ")
    template = f"""# {name}

{lead[0].upper()}{lead[1:]}

```bash
recbole-cafe run --model={name} --dataset=ml-100k
```

Source: [{source}](../../{source}), keys: [props/model/{name}.yaml](../../props/model/{name}.yaml).

## Idea and equations

{markdown_of(body)}

{measured(name)}
{INSIDE.get(name, "")}## Options

`--key=value` on the command line, or `config_dict`. Keys of every model: `recbole-cafe show-config`.

"""
    return template + "\n".join(options(keys.read_text(encoding="utf-8")))


def markdown_of(docstring: str) -> str:
    """A docstring as Markdown: what Sphinx writes its own way."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring)
    text = re.sub(r"\bdocs/(\w+\.md)", r"[docs/\1](../\1)", text)
    text = re.sub(r" {4,}(\(\d+\))$", r"    \1", text, flags=re.MULTILINE)  # numbers of equations, near them
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def options(text: str) -> list[str]:
    """A table for each group of keys of a YAML: key, default, meaning, as its comments say."""
    lines: list[str] = []
    rows: list[list[str]] = []

    def close() -> None:
        if rows:
            lines.extend(["| key | default | type | meaning |", "|---|---|---|---|"])
            lines.extend("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
            lines.append("")
            rows.clear()

    before = "the file's own heading"
    for line in text.splitlines():
        if entry := ENTRY.match(line):
            rows.append([f"`{entry['key']}`", f"`{entry['value']}`", entry["type"] or "", entry["text"]])
        elif rows and (more := MORE.match(line)):
            rows[-1][-1] += " " + more["text"]
        elif (group := GROUP.match(line)) and before == "":
            close()
            lines.extend([f"### {group['title']}", ""])
        before = line
    close()
    return lines


def measured(name: str) -> str:
    """What the model reached beside the others, where it was measured; else nothing."""
    for benchmark, dataset in MEASURED:
        folder = ROOT / "results" / benchmark
        of_dataset = read(folder).datasets.get(dataset, ())
        systems = [of.system for of in of_dataset if {run["model"] for run in of.runs.values()} == {name}]
        if not systems:
            continue
        spec = {"benchmark": benchmark, "dataset": dataset, "corner": "system", "rows": systems, "bold": False,
                "columns": [{"title": "`pop100` NDCG@5", "protocol": "pop100", "metric": "ndcg@5"},
                            {"title": "`full` NDCG@10", "protocol": "full", "metric": "ndcg@10"}]}  # fmt: skip
        page = "README.md" if (folder / "README.md").is_file() else "report/report.md"
        source = f"[all systems](../../results/{benchmark}/{page})"
        text = f"## What it gives\n\n{dataset}, test, mean (standard deviation) over the seeds; {source}.\n\n"
        return text + "\n".join([*pages.table(spec, ROOT / "results"), "", ""])
    return ""


# Other pages ----------------------------------------------------------------------------------------------------------


def results_page() -> str:
    """A line for each page of results."""
    intro = "Each folder holds every run (`runs.jsonl`), the ranks of every user and a report with paired tests."
    lines = ["# All results", "", intro, ""]
    for path in sorted((ROOT / "results").iterdir()):
        readme, report = path / "README.md", path / "report" / "report.md"
        page = next((p for p in (readme, report) if p.is_file()), None)
        if page:
            title = next(line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
            also = f", [report](../../{report.relative_to(ROOT)})" if report.is_file() and page is readme else ""
            lines.append(f"* [{path.name}](../../{page.relative_to(ROOT)}): {title[2:]}{also}")
    return "\n".join([*lines, ""])


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its texts, its code, and what the code wrote."""
    lines: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                lines += [f"![Picture](data:image/png;base64,{''.join(data['image/png']).strip()})", ""]
            elif "text/markdown" in data:
                lines += ["".join(data["text/markdown"]), ""]
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                lines += ["```text", text, "```", ""]
    return "\n".join(lines)
