"""RESULTS.md has a section for each benchmark, which that benchmark writes and nobody else."""

from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"


def put_section(name: str, lines: list[str], part: str = "") -> None:
    """Exchange the section `name`, or that `part` of it, or add it at the end."""
    title = f"{name} {part}".rstrip()
    begin, end = f"<!-- {title}: written by benchmarks/{name}.py -->", f"<!-- end of {title} -->"
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    head, tail = text.split(begin)[0], text.split(end)[1]
    RESULTS.write_text("\n".join([head + begin, *lines, end]) + tail, encoding="utf-8")
