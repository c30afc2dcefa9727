"""What `fidelity.py` measured as a section of RESULTS.md, with the goals that were set, and as a figure."""

import json
from pathlib import Path
from statistics import fmean, stdev

from fidelity_peers import REFERENCE
from results import HERE, put_section

from hswq_hub.settings import DEFAULT_FORMATS, RECIPES

BASELINE = "--recipe hswq"


def report(works: list[Path]) -> None:
    """Put a table for each model into RESULTS.md, and draw error against size."""
    lines, models = ["## Fidelity"], {}
    for work in works:
        runs = [json.loads(path.read_text()) for path in sorted(work.glob("seed-*.json"))]
        labels = [row["label"] for row in max((run["rows"] for run in runs), key=len)]
        means = [_mean([row for run in runs for row in run["rows"] if row["label"] == label]) for label in labels]
        lines += ["", *_introduction(work.name, runs), "", *_table(means), "", *_goals(runs)]
        models[work.name] = means
    _drawn(models).savefig(HERE / "fidelity.png", metadata={"Software": None})
    put_section("fidelity", [*lines, "", "![error against size](fidelity.png)"])
    print("\n".join(lines))


def _row(run: dict, label: str) -> dict:
    return next(row for row in run["rows"] if row["label"] == label)


def _goals(runs: list[dict]) -> list[str]:
    """What the default was to reach, for each seed."""
    lines = ["| goal | reached | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |"]
    lines.append("|---|---|" + "---:|" * len(runs))
    for what, other, most in (
        ("default, V1", f"{BASELINE}, V1", 0.1),
        ("default, V2", f"{BASELINE}, V2", 0.1),
        ("default, V1", REFERENCE, 0.7),
        ("default, V2", REFERENCE, 0.5),
    ):
        ratios = [_row(run, what)["latent_mse"] / _row(run, other)["latent_mse"] for run in runs]
        reached = "yes" if max(ratios) <= most else "no" if min(ratios) > most else "in part"
        shown = " | ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(f"| latent MSE of {what} over that of {other} at most {most:g} | {reached} | {shown} |")
    for version in DEFAULT_FORMATS:
        sizes = [[_row(run, f"{name}, {version.label}")["bytes"] for name in ("default", BASELINE)] for run in runs]
        reached = "yes" if all(ours <= theirs for ours, theirs in sizes) else "no"
        shown = " | ".join(f"{ours / theirs:.3f}" for ours, theirs in sizes)
        lines.append(f"| bytes of default, {version.label} over those of {BASELINE} at most 1 | {reached} | {shown} |")
    return lines


def _mean(rows: list[dict]) -> dict:
    def mean(name):
        values = [row[name] for row in rows if row[name] is not None]
        return fmean(values) if values else None

    errors = [row["latent_mse"] for row in rows]
    return {name: mean(name) for name in ("bytes", "seconds", "latent_mse", "ssim_mean")} | {
        "label": rows[0]["label"],
        "seeds": len(rows),
        "spread": stdev(errors) if len(errors) > 1 else 0.0,
        "ssim_worst": min(row["ssim_worst"] for row in rows),
    }


def _introduction(name: str, runs: list[dict]) -> list[str]:
    protocol, how = runs[0]["protocol"], RECIPES["measured"]
    return [
        f"### {name}",
        "",
        f"A trained {runs[0]['architecture']} of width {runs[0]['width']} (SHA-256 `{runs[0]['sha256'][:12]}`), "
        f"{len(runs)} seeds, "
        f"{protocol['settings']['pairs']} captions each that no setting was chosen by, "
        f"{protocol['generation']['size']} pixels, {protocol['generation']['steps']} steps, {protocol['dtype']}, "
        f"{protocol['hardware']}, torch {protocol['versions']['torch']}. Calibration: {runs[0]['samples']} pictures of "
        f"{runs[0]['steps']} steps. "
        f"The default is recipe `measured`: rounding {how.rounding}, keep by {how.keep_by}, budget "
        f"{runs[0]['budget']:g}. "
        "± is the standard deviation over seeds; the worst SSIM is that of all pictures; size is that of the file, as "
        "a share of the original's. Seconds: making the file, calibration apart. INT8 and other tools: simulated.",
    ]


def _table(means: list[dict]) -> list[str]:
    whole = means[0]["bytes"]
    lines = ["| variant | size | latent MSE | SSIM mean | SSIM worst | seconds | seeds |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for row in means[1:]:
        spent = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        spread = f" ± {row['spread']:.1e}" if row["seeds"] > 1 else ""
        lines.append(
            f"| {row['label']} | {row['bytes'] / whole:.1%} | {row['latent_mse']:.2e}{spread} | "
            f"{row['ssim_mean']:.4f} | {row['ssim_worst']:.4f} | {spent} | {row['seeds']} |"
        )
    return lines


def _drawn(models: dict[str, list[dict]]):
    """Error against size, a panel for each model; names stand in a column, by ascending error from below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(models), 6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, (name, means) in zip(panels, models.items(), strict=True):
        whole, shown = means[0]["bytes"], sorted(means[1:], key=lambda row: row["latent_mse"])
        for place, row in enumerate(shown):
            point, color = (100 * row["bytes"] / whole, row["latent_mse"]), _color(row["label"])
            axes.scatter(*point, s=20, color=color, zorder=2)
            axes.annotate(
                row["label"],
                point,
                (1.06, (place + 0.5) / len(shown)),
                textcoords="axes fraction",
                fontsize=7,
                color=color,
                va="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": color, "alpha": 0.5, "relpos": (0, 0.5)},
            )
        axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("size of the file, % of the original")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("latent MSE against the original")
    return figure


def _color(label: str) -> str:
    colors = {"default": "#c44e52", "kfac": "#4c72b0", "gptq": "#4c72b0", "INT8": "#55a868", BASELINE: "#000000"}
    ours = ("nearest", "naive", "published", "exact")
    known = next((color for start, color in colors.items() if label.startswith(start)), None)
    return known or ("#777777" if label.startswith(ours) else "#dd8452")
