"""The steps of `publish`, each a command of its own: `calibrate`, `quantize`, `evaluate`, `card`, and `compare`."""

import sys
from pathlib import Path

import click

from hswq_runtime.formats import Format

from ..common.layout import RECORD
from ..settings import CalibrationSettings, EvaluationSettings, Recipe, SourceSettings
from .groups import OptionGroup, takes
from .options import (
    CALIBRATION,
    CALIBRATION_BOUND,
    DEVICE,
    DEVICE_BOUND,
    DTYPE,
    EXISTING_FILE,
    FIRST_PAIR,
    FOLDER,
    FORMATS,
    GUIDANCE,
    METRICS,
    NEW_FILE,
    NOISE_FLOOR,
    PAIRS,
    PROMPTED_SOURCE,
    RECIPE,
    SIZE,
    metrics_named,
)
from .terminal import chooser, quiet, say, tell
from .words import command_words


@click.command()
@click.argument("reference")
@takes(source=PROMPTED_SOURCE, settings=CALIBRATION)
@DEVICE_BOUND
@click.option(
    "-o", "--output", type=NEW_FILE, required=True, help="Statistics file (.safetensors; a .json goes beside it)."
)
@click.option(
    "--num-processes",
    type=click.IntRange(2),
    help="Share the pictures among so many processes, one a GPU, as `accelerate launch -m hswq_hub calibrate` does.",
)
@click.pass_context
def calibrate(
    context: click.Context,
    reference: str,
    source: SourceSettings,
    settings: CalibrationSettings,
    device_memory: float | None,
    output: Path,
    num_processes: int | None,
) -> None:
    """Gather statistics while the original makes pictures.

    \b
    hswq-hub calibrate demo -o demo-calibration.safetensors
    """
    from ..calibration.calibrate import Calibration, calibrate
    from ..calibration.processes import Group, launch
    from ..calibration.weights import empty_weights
    from ..common.hardware import pick_device
    from ..common.targets import check_replaceable
    from ..evaluation.plots import draw_calibration
    from ..sources.find import find
    from ..sources.reference import without_secrets
    from ..workflow.preflight import say_prompts, warn_of_guess, warn_of_zeros
    from ..workflow.workspace import Workspace

    if num_processes is not None:
        words = command_words(context.command, context.params, {"num_processes"})
        sys.exit(launch(num_processes, [str(context.command.name), without_secrets(reference), *words]))
    quiet()
    check_replaceable(output, ".safetensors", Calibration.load)
    original = find(reference, source, chooser()).fetch()
    writes = Group(pick_device(settings.device)).first
    if writes:
        warn_of_guess(original, say)
        say_prompts(original, say, guidance=settings.guidance, measures=False)
        warn_of_zeros(empty_weights(original.checkpoint), say)
    with Workspace(original.name, original.sha256).pieces("calibrate", output, say, first=writes) as pieces:
        calibration = calibrate(original, settings, device_memory, pieces)
        if not writes:
            return
        calibration.save(output)
    skipped = sum(layer.skipped for layer in calibration.layers.values())
    tell(f"{output}: {len(calibration.layers)} layers, {skipped} calls left out as non-finite")
    tell(draw_calibration(original.checkpoint, calibration, output))


@click.command()
@click.argument("reference")
@takes(source=PROMPTED_SOURCE)
@click.option("--calibration", "statistics", type=EXISTING_FILE, required=True, help="What `calibrate` wrote.")
@takes(recipe=RECIPE, formats=FORMATS)
@CALIBRATION_BOUND
@DEVICE
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder for NAME-hswq-v1.safetensors and so on.")
def quantize(
    reference: str,
    source: SourceSettings,
    statistics: Path,
    recipe: Recipe,
    formats: tuple[Format, ...],
    calibration_memory: float,
    device: str,
    output: Path,
) -> None:
    """Write the quantized files.

    \b
    hswq-hub quantize demo --calibration demo-calibration.safetensors -o out
    """
    from ..calibration.calibrate import Calibration
    from ..common.text import text_table
    from ..evaluation.plots import draw_plan
    from ..evaluation.report import plan_table
    from ..sources.find import find
    from ..workflow.quantize import quantize

    quiet()
    original, calibration = find(reference, source, chooser()).fetch(), Calibration.load(statistics)
    for path, plan in quantize(original, calibration, formats, output, recipe, device, calibration_memory, say):
        tell(f"{path}: {len(plan.kept)} of {len(plan.decisions)} layers kept")
        for drawing in draw_plan(original.checkpoint, plan, path):
            tell(drawing)
        tell(text_table(*plan_table(plan)) + "\n")


def _evaluation(
    pairs: int,
    steps: int | None,
    seed: int,
    guidance: float | None,
    size: int | None,
    device: str,
    dtype: str,
    perceptual: str | None,
    noise_floor: bool,
) -> EvaluationSettings:
    return EvaluationSettings(pairs, steps, seed, guidance, size, device, dtype, metrics_named(perceptual), noise_floor)


EVALUATION = OptionGroup(
    _evaluation,
    PAIRS,
    click.option("--steps", type=click.IntRange(1), help="Denoising steps.  [default: the architecture's]"),
    FIRST_PAIR,
    METRICS,
    NOISE_FLOOR,
    GUIDANCE,
    SIZE,
    DEVICE,
    DTYPE,
)


@click.command()
@click.argument("reference")
@click.argument("files", type=EXISTING_FILE, nargs=-1, required=True)
@takes(source=PROMPTED_SOURCE, settings=EVALUATION)
@DEVICE_BOUND
@click.option("-o", "--output", type=NEW_FILE, help="Write the figures here, as JSON.")
def evaluate(
    reference: str,
    files: tuple[Path, ...],
    source: SourceSettings,
    settings: EvaluationSettings,
    device_memory: float | None,
    output: Path | None,
) -> None:
    """Measure quantized files against their original.

    Every file makes the same pictures, from the same prompts and the same noise.

    \b
    hswq-hub evaluate demo out/demo-hswq-v1.safetensors out/demo-hswq-v2.safetensors
    """
    from ..common.hardware import pick_device
    from ..common.targets import check_replaceable
    from ..common.text import text_table
    from ..evaluation.evaluate import evaluate, label_files
    from ..evaluation.report import headings, table
    from ..evaluation.results import Evaluation
    from ..sources.find import find
    from ..workflow.preflight import say_prompts, warn_of_guess
    from ..workflow.workspace import Workspace

    quiet()
    if output is not None:
        check_replaceable(output, ".json", Evaluation.load)
    original = find(reference, source, chooser()).fetch()
    pick_device(settings.device)  # one that is not there is told before anything else
    warn_of_guess(original, say)
    say_prompts(original, say, guidance=settings.guidance, calibrates=False)
    if output is None:
        evaluation = evaluate(original, label_files(files), settings, device_memory)
    else:
        with Workspace(original.name, original.sha256).pieces("evaluate", output, say) as pieces:
            evaluation = evaluate(original, label_files(files), settings, device_memory, pieces)
            evaluation.save(output)
    tell(text_table(headings(evaluation), table(evaluation)))


@click.command()
@click.argument("one", type=EXISTING_FILE)
@click.argument("other", type=EXISTING_FILE, required=False)
@click.option(
    "--against-record",
    "record",
    metavar="[FILE]",
    is_flag=False,
    flag_value="",
    help=f"Instead of a second file: the record that was published with it.  [no value: {RECORD} beside the file]",
)
def compare(one: Path, other: Path | None, record: str | None) -> None:
    """Show two files of one model, quantized or not, tensor by tensor; or check a published file against its record.

    Against its record, every tensor and every metadata entry has to be there with the recorded digest, and none
    besides. What differs is listed, and the exit code is 1.

    \b
    hswq-hub compare out/demo-hswq-v1.safetensors out/demo-hswq-v2.safetensors
    hswq-hub compare out/demo-hswq-v2.safetensors --against-record
    """
    if (other is None) == (record is None):
        raise click.UsageError("give a second file, or --against-record")
    if other is None:
        _check_against(one, Path(record) if record else one.with_name(RECORD))
        return
    from hswq_runtime import Checkpoint

    from ..common.text import text_table
    from ..evaluation.compare import compare
    from ..evaluation.report import compare_table

    tell(text_table(*compare_table(compare(Checkpoint(one), Checkpoint(other)))))


def _check_against(file: Path, record: Path) -> None:
    from ..cards.record import PublishedRecord
    from ..common.text import text_table
    from ..evaluation.digests import differences, digests_of
    from ..evaluation.report import differences_table
    from ..hub.history import read_json

    recorded = PublishedRecord.from_document(read_json(record)).digests_of(file.name)
    found = differences(recorded, digests_of(file))
    if found:
        tell(text_table(*differences_table(found), left=("name", "against the record")))
        say(f"{file} is not the file that {record} describes")
        sys.exit(1)
    tell(f"{file}: {len(recorded.tensors)} tensors and {len(recorded.metadata)} metadata entries, all as recorded")


@click.command()
@click.argument("model", required=False)
@click.option("--catalog", type=FOLDER, help="Instead: write a card for each model of the catalog below this folder.")
def card(model: str | None, catalog: Path | None) -> None:
    """Render a model card: a published folder's anew, or of a model that `hswq-hub models` lists what is known of it.

    A folder's is written into it; a listed model's, which has no figures yet, is printed.

    \b
    hswq-hub card hswq-published/demo-hswq
    hswq-hub card harukiMIX_zit2603
    """
    from ..cards.card import card_of, write_card, write_catalog_cards

    if catalog is not None and model is None:
        for path in write_catalog_cards(catalog):
            tell(path)
    elif model is not None and catalog is None:
        folder = Path(model)
        tell(write_card(folder) if folder.is_dir() else card_of(model).render().removesuffix("\n"))
    else:
        raise click.UsageError("give a folder or the name of a model, or --catalog FOLDER")
