"""What `publish` would take of published models on GPUs that are not here, by the model of cost alone.

    python benchmarks/cost.py --json build/cost.json
    python benchmarks/cost.py --before benchmarks/cost_before.json

Nothing is run and no weight is read: a model is a header with its published keys and shapes, beside components of the
published number of parameters. Calls and bytes are those of the steps' own `Work`, seconds are foretold from a GPU's
published figures, see `common/speed/`. `--json` writes all figures, `--before` shows those of such a file beside. The
section in RESULTS.md is written by this script.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import accelerate
import diffusers
from results import put_section

from hswq_hub.common.speed.gpus import GPUS
from hswq_hub.common.speed.rates import ACHIEVED
from hswq_hub.common.text import roughly
from hswq_hub.sources.source import Prompts, Source
from hswq_hub.workflow.publish import PublishPlan
from hswq_runtime import Checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import originals, tiny_unet

SECTION = "cost"
ON = ("RTX 3060 12GB", "RTX 4080", "RTX 4090", "L40S", "H100 SXM")
COMPONENTS = {
    "z-image": {"text_encoder": 4.02e9, "vae": 0.084e9},
    "sdxl": {"text_encoder": 0.123e9, "text_encoder_2": 0.695e9, "vae": 0.084e9},
    "flux-1-dev": {"text_encoder": 0.123e9, "text_encoder_2": 4.76e9, "vae": 0.084e9},
    "qwen-image": {"text_encoder": 8.29e9, "vae": 0.127e9},
}
"""Parameters of Qwen3-4B; CLIP ViT-L and ViT-bigG (text); CLIP ViT-L and T5-XXL (encoder); Qwen2.5-VL-7B; the VAEs."""
VAES = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 1024}


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the published file."""
    if name in originals.ORIGINALS:
        original = originals.ORIGINALS[name]
        return {original.prefix + key: shape for key, shape in original.shapes(original.published).items()}
    with accelerate.init_empty_weights():
        unet = diffusers.UNet2DConditionModel(**tiny_unet.FULL_SIZE[name])
    return tiny_unet.original_unet({key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()})


def write_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of that size which takes no room: all of it but the header is a hole."""
    hole = originals.hole(shapes)
    path.write_bytes(hole.header)
    with path.open("ab") as file:
        file.truncate(len(hole))


def stand_in(name: str, folder: Path) -> Source:
    """The published model as far as its headers say."""
    path, base = folder / f"{name}.safetensors", folder / "base"
    write_header(path, shapes_of(name))
    for component, values in COMPONENTS[name].items():
        (base / component).mkdir(parents=True)
        write_header(base / component / "model.safetensors", {"weight": (int(values),)})
    (base / "model_index.json").write_text("{}")
    prompts = Prompts(("one",), ("two",))
    return Source(name, path, Checkpoint(path), "5" * 64, str(base), "published shapes", None, prompts, name, vae=VAES)


def figures_of(plan: PublishPlan) -> dict[str, object]:
    """What is foretold of one model on one GPU."""
    memory = plan.memories[0]
    steps = {
        step.name: {"work": asdict(step.work()), "seconds": plan.forecast.seconds(step)} for step in plan.remaining
    }
    return {"memory": {"needed": memory.needed, "said": memory.line}, "steps": steps}


def all_figures() -> dict[str, dict[str, dict[str, object]]]:
    """Model -> GPU -> `figures_of`."""
    found = {}
    for name in COMPONENTS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HSWQ_HOME"] = folder
            source = stand_in(name, Path(folder))
            found[name] = {gpu: figures_of(PublishPlan.of(source, gpu=GPUS[gpu])) for gpu in ON}
    return found


def with_before(now: str, before: str | None) -> str:
    return now if before in (None, now) else f"{now} ({before})"


def table(figures: dict, before: dict) -> Iterator[str]:
    """Of one model: a line a step, and one for all. before: the same of an earlier commit, or {}."""
    yield "| step | calls, by GPU where they differ | disk, GB | streamed, GB, by GPU | " + " | ".join(ON) + " |"
    yield "|---|---:|---:|---:|" + "---:|" * len(ON)
    names = list(dict.fromkeys([*_steps(figures), *_steps(before)]))
    for name in [*names, "all"]:
        rows = [_row(name, found) if found else None for found in (figures, before)]
        now, earlier = rows[0] or ["gone"] * (3 + len(ON)), rows[1] or [None] * (3 + len(ON))
        yield f"| {name} | " + " | ".join(with_before(*pair) for pair in zip(now, earlier, strict=True)) + " |"


def _steps(figures: dict) -> list[str]:
    return list(figures[ON[0]]["steps"]) if figures else []


def _row(name: str, figures: dict) -> list[str] | None:
    """Calls, bytes and the time on each GPU of one step, or of all together."""
    if name != "all" and name not in figures[ON[0]]["steps"]:
        return None
    steps = [[s for step, s in figures[gpu]["steps"].items() if name in (step, "all")] for gpu in ON]
    works = [[step["work"] for step in of_gpu] for of_gpu in steps]
    calls = [sum(work["calls"] * work["batch"] for work in of_gpu) for of_gpu in works]
    moved = sum(work["moved"] for work in works[0])
    streamed = [sum(work["streamed"] for work in of_gpu) / 1e9 for of_gpu in works]
    times = [roughly(sum(step["seconds"] for step in of_gpu)).removeprefix("~ ") for of_gpu in steps]
    return [
        "/".join(f"{count:,}" for count in (calls if len(set(calls)) > 1 else calls[:1])),
        f"{moved / 1e9:.1f}",
        "/".join(f"{gb:,.0f}" for gb in streamed) if any(streamed) else "",
        *times,
    ]


def section(figures: dict, before: dict) -> list[str]:
    lines = [
        "## What publishing would take on other GPUs",
        "",
        "By the model of cost alone: nothing here was run or measured on a GPU. `python benchmarks/cost.py`; recipe, "
        "pictures and memory are the defaults of `publish`. A call is a forward pass of the denoiser, or as much work. "
        f"Times are {ACHIEVED:.0%} of the published peaks (an assumption, see `common/speed/rates.py`), as if nothing "
        "were done beside something else. In brackets: before the changes since `benchmarks/cost_before.json` was "
        "written, where that differs.",
    ]
    for name, found in figures.items():
        lines += ["", f"### {name}", "", *table(found, before.get(name, {})), ""]
        lines += [f"- {gpu}: {found[gpu]['memory']['said']}" for gpu in ON]
    return lines


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--json", type=Path, help="write all figures to this file, and nothing to RESULTS.md")
    command.add_argument("--before", type=Path, help="an earlier such file, to be shown beside")
    args = command.parse_args()
    figures = all_figures()
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        return
    before = json.loads(args.before.read_text(encoding="utf-8")) if args.before else {}
    lines = section(figures, before)
    print("\n".join(lines))
    put_section(SECTION, lines)


if __name__ == "__main__":
    main()
