"""Tries a target with a seed and holds what came of it against the property.

No exception but ours, with a sentence of at most 300 characters that can be printed; no time and no memory beyond a
small bound; nothing written outside of the folder that it was given.
"""

import os
import random
import resource
import sys
import time
import traceback
from pathlib import Path

from hswq_runtime.errors import HSWQError

SECONDS, BYTES = 3.0, 400e6
"""Of the processor, and by which the largest use of memory may grow, in one try: no document is above a few MB."""


class Failure(AssertionError):
    """A target and a seed that break the property."""


def attempt(name: str, target, seed: int, folder: Path) -> bool:
    """One try in an empty folder; whether the document was accepted.

    Raises:
        Failure: the property does not hold.
    """
    inside = folder / "inside"
    inside.mkdir(parents=True, exist_ok=True)
    start, before = time.process_time(), _largest()
    accepted, problem = True, None
    try:
        target(random.Random(f"{name} {seed}"), inside)
    except HSWQError as error:
        said, accepted = str(error), False
        if not said or len(said) > 300 or not said.isprintable():
            problem = f"its sentence has {len(said)} characters: {said[:400]!r}"
    except Exception:
        problem = traceback.format_exc(limit=-8)
    seconds, grown = time.process_time() - start, _largest() - before
    if problem is None and (seconds > SECONDS or grown > BYTES):
        problem = f"it took {seconds:.1f} s and {grown / 1e6:.0f} MB more than any before"
    if problem is None and (outside := sorted(path.name for path in folder.iterdir() if path != inside)):
        problem = f"it wrote {outside} outside of its folder"
    if problem is not None:
        raise Failure(f"{name} with seed {seed}: {problem}")
    return accepted


def _largest() -> int:
    """The largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    """`make fuzz`: all targets in turn, HSWQ_FUZZ_SECONDS long, from HSWQ_FUZZ_SEED on (a fresh one without it)."""
    import tempfile

    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import diffusers

    from fuzz.targets import Targets

    diffusers.utils.logging.set_verbosity_error()
    last = time.monotonic() + float(os.environ.get("HSWQ_FUZZ_SECONDS", "3600"))
    first = int(os.environ.get("HSWQ_FUZZ_SEED", str(random.SystemRandom().randrange(10**9))))
    chosen = os.environ.get("HSWQ_FUZZ_TARGETS", "").split()
    print(f"HSWQ_FUZZ_SEED={first}", flush=True)
    failed, accepted, tries = set[str](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HSWQ_HOME"] = str(Path(folder) / "home")
        (Path(folder) / "right").mkdir()
        targets = Targets(Path(folder) / "right").all
        os.chdir(folder)
        seed = first
        while time.monotonic() < last:
            for name, target in targets.items():
                if chosen and name not in chosen:
                    continue
                tries += 1
                try:
                    accepted += attempt(name, target, seed, Path(folder) / "tries" / name)
                except Failure as failure:
                    kind = str(failure).splitlines()[-1][:90]
                    if (name, kind) not in failed:
                        failed.add((name, kind))
                        again = f"HSWQ_FUZZ_SECONDS=1 HSWQ_FUZZ_SEED={seed} HSWQ_FUZZ_TARGETS={name} make fuzz"
                        print(f"{failure}\nagain: {again}\n", flush=True)
            seed += 1
    print(f"{tries} tries, {accepted} accepted, {len(failed)} ways to fail, seeds {first} to {seed - 1}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
