"""What reads strangers' documents, each with a document that is right: name -> one try with a changed one."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from huggingface_hub.hf_api import ModelInfo
from support import originals, tiny_unet
from support.civitai_server import MODEL, VERSION

from hswq_hub.cards.card import write_card
from hswq_hub.cli.tables import found_lines
from hswq_hub.generation.cost import picture_values, pixels_a_token, vae_flops
from hswq_hub.generation.generate import GenerationSettings
from hswq_hub.settings import PromptSettings, SourceSettings
from hswq_hub.sources.civitai import Civitai
from hswq_hub.sources.components import vae_of
from hswq_hub.sources.find import Found
from hswq_hub.sources.http.header import stand_in
from hswq_hub.sources.huggingface import Hub
from hswq_hub.sources.prompts.examples import clean
from hswq_hub.sources.prompts.given import GivenPrompts
from hswq_hub.sources.reference import HubRef, LocalRef, identify, parse
from hswq_hub.workflow.inspect import inspect
from hswq_runtime import Checkpoint, formats
from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.checkpoints.base import find_base
from hswq_runtime.checkpoints.header import DTYPE_BITS
from hswq_runtime.checkpoints.locate import HubOptions, locate
from spaces_app.page.links import request_from_query
from spaces_app.request import Limits, validated_request

from . import mutate

ROOT = Path(__file__).parents[2]
SHOWN = ROOT / "model_cards/demo-hswq"
MOST_BYTES = 1 << 26
"""Of a file that a header describes; a larger one is cut."""
LIMITS = Limits(("original", "V1", "V2"), 8, 1.0, 512)
REFERENCES = (
    "demo", "civitai:2242173@2774410", "civitai:sha256:" + "ab" * 32, "civitai:hash:0123456789",
    "urn:air:zimage:checkpoint:civitai:2242173@2774410", "hf:owner/repo@main/folder/model.safetensors", "owner/repo",
    "https://civitai.com/models/2242173?modelVersionId=2774410", "https://huggingface.co/owner/repo/tree/main/unet",
    "https://civitai.com/api/download/models/2774410?type=Model&format=SafeTensor&fp=fp16&token=secret",
    "https://huggingface.co/owner/repo/blob/main/model.safetensors?download=true", "model.safetensors",
    "https://civitai.com/api/v1/model-versions/by-hash/0123456789abcdef", "./model.safetensors",
)  # fmt: skip
Try = Callable[[random.Random, Path], None]


class Documents:
    """What is right: made once."""

    def __init__(self, folder: Path):
        self.files: list[tuple[dict, bytes]] = []
        for name in ("z_image", "flux", "flux2", "stable_diffusion_3", "chroma", "qwen_image", "aura_flow"):
            found = [key for key in originals.ORIGINALS if key.replace("-", "_").startswith(name[:5])]
            for key in found[:1]:
                (folder / key).mkdir()
                self.files.append(_parts(originals.write_tiny(folder / key, originals.ORIGINALS[key])))
        (folder / "sdxl").mkdir()
        self.files.append(_parts(tiny_unet.full("sdxl", folder / "sdxl")[0]))
        self.files.append(_parts(ROOT / "spaces_app/bundled/demo-hswq-v1.safetensors"))
        self.files.append(_parts(ROOT / "spaces_app/bundled/demo-hswq-v2.safetensors"))
        self.record = json.loads((SHOWN / "hswq.json").read_text())
        self.record["layers"] = {name: rows[:6] for name, rows in self.record["layers"].items()}
        self.metrics = json.loads((SHOWN / "metrics.json").read_text())


def _parts(path: Path) -> tuple[dict, bytes]:
    """Header and data of a safetensors file."""
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:size]), content[size:]


def _write(path: Path, header: bytes, data: bytes, size: int | None = None) -> None:
    path.write_bytes((len(header) if size is None else size).to_bytes(8, "little", signed=False) + header + data)


def _open(path: Path) -> None:
    """All that a look at a file does."""
    checkpoint = Checkpoint(path)
    find_base(checkpoint, None)
    checkpoint.quantized  # noqa: B018
    for key in list(checkpoint.tensors)[:3]:
        checkpoint.tensor(key)
    checkpoint.empty_model(constants=True)
    checkpoint.scales  # noqa: B018
    checkpoint.weight_bytes  # noqa: B018
    checkpoint.scheduler  # noqa: B018
    for line in inspect(path).lines("cpu"):
        assert line.isprintable() and len(line) < 2000, line[:300]


class Targets:
    """The tries by name; `documents` are made in `folder`."""

    def __init__(self, folder: Path):
        self._right = Documents(folder)

    @property
    def all(self) -> dict[str, Try]:
        return {name: getattr(self, name) for name in NAMES}

    def header(self, chance: random.Random, folder: Path) -> None:
        header, data = chance.choice(self._right.files)
        header = self._with_odd_tensors(chance, header)
        if chance.random() < 0.7:
            said = mutate.text(chance, header)
        else:
            said = mutate.text(chance, mutate.mutated(chance, header))
        content = said.encode("utf-8", errors="surrogatepass")
        size = chance.choice([0, 1, len(content) + 1, 10**8, 2**63, 2**64 - 1]) if chance.random() < 0.05 else None
        _write(folder / "model.safetensors", content, data, size)
        _open(folder / "model.safetensors")

    def _with_odd_tensors(self, chance: random.Random, header: dict) -> dict:
        """Entries of the header changed one at a time, each keeping to the bytes that it has."""
        header = {key: dict(entry) for key, entry in header.items()}
        for _ in range(chance.randint(0, 3)):
            key = chance.choice(list(header))
            if key == "__metadata__":
                continue
            entry, kind = header[key], chance.random()
            if kind < 0.25:
                header[mutate.name(chance) if kind < 0.12 else mutate.word(chance, key)] = header.pop(key)
            elif kind < 0.45:
                del header[key]
            elif kind < 0.6 and (shape := entry.get("shape")) and isinstance(shape, list):
                entry["shape"] = chance.choice([shape[::-1], [*shape, 1], [1, *shape], shape[1:], [], [0], [2**40]])
            elif kind < 0.8:
                entry["dtype"] = chance.choice([*DTYPE_BITS, "F8", "Q4_K", "", "float32", "bf16"])
            else:
                offsets = [*entry["data_offsets"], 0, 0][:2]  # what came before may have left one
                entry["data_offsets"] = chance.choice(
                    [offsets[::-1], [0, 0], [offsets[0], offsets[1] + 1], [0, 2**63], [-1, 3], [0.5, 1], offsets[:1]]
                )
        return header

    def stand_in(self, chance: random.Random, folder: Path) -> None:
        header = chance.choice(self._right.files)[0]
        content = mutate.text(chance, self._with_odd_tensors(chance, header)).encode("utf-8", errors="surrogatepass")
        most = chance.choice([None, MOST_BYTES])
        with stand_in(len(content).to_bytes(8, "little") + content, "model.safetensors", most) as path:
            _open(path)

    def metadata(self, chance: random.Random, folder: Path) -> None:
        header, data = chance.choice(self._right.files)
        stated = {
            "hswq_config": json.dumps({"_class_name": "ZImageTransformer2DModel", "dim": 96, "axes_dims": [8, 8]}),
            "hswq_fold": json.dumps({key: [[2, 1], [1, -1]] for key in list(header)[1:4]}),
            "hswq_base": "owner/repo", "hswq_format": chance.choice(["v1", "v2"]), "hswq_for": "comfyui",
            "_quantization_metadata": json.dumps({"layers": {"a": {"format": "float8_e4m3fn"}}}),
            "modelspec.license": "apache-2.0", "modelspec.prediction_type": "v",
        }  # fmt: skip
        own = {**header.get("__metadata__", {}), **{k: v for k, v in stated.items() if chance.random() < 0.3}}
        for name in [name for name in own if chance.random() < 0.5]:
            try:
                own[name] = mutate.text(chance, mutate.mutated(chance, json.loads(own[name])))
            except ValueError:
                own[name] = mutate.word(chance, own[name])
        if chance.random() < 0.3:
            own |= {mutate.name(chance): mutate.name(chance), "x" * 300: "\x1b[2J"}
        header = {**header, "__metadata__": own if chance.random() < 0.95 else mutate.mutated(chance, own)}
        _write(folder / "model.safetensors", json.dumps(header).encode("utf-8", errors="surrogatepass"), data)
        _open(folder / "model.safetensors")

    def mark(self, chance: random.Random, folder: Path) -> None:
        """The `comfy_quant` of a weight, and the scales beside it."""
        right = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
        said = mutate.text(chance, mutate.mutated(chance, json.loads(right))).encode("utf-8", errors="replace")
        mark = torch.tensor(list(said[:100_000]), dtype=torch.uint8)
        kinds = [torch.uint8, torch.int8, torch.float32, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.int64]
        mark = mark.to(chance.choice(kinds)) if chance.random() < 0.2 else mark
        shape = chance.choice([(), (1,), (4,), (4, 1), (1, 4), (0,), (2, 2)])
        scales = [torch.full(shape, number) for number in (1.0, 2.0, 0.0, -1.0, float("nan"), float("inf"), 1e-40)]
        scale = chance.choice(scales).to(chance.choice(kinds[2:6] if chance.random() < 0.2 else [torch.float32]))
        name = mutate.name(chance) + chance.choice(["", ".weight"])
        stored = {"mark": mark, "one": scale, "two": chance.choice(scales)}
        keys = tuple(chance.sample(["one", "two"], chance.randint(0, 2)))
        named = chance.choice([None, *formats.Format])
        weight = formats.StoredWeight(name, keys, chance.choice([None, "mark"]), named)
        formats.read_scale(weight, 4, stored.__getitem__)
        suffixes = ["", ".weight", ".scale", ".comfy_quant", ".weight.scale", ".weight_scale", ".scale_weight"]
        suffixes += [".scaled_fp8", ".input_scale"]
        dtypes = {
            chance.choice([name, "a", "b"]) + chance.choice(suffixes): chance.choice([*DTYPE_BITS, "?"])
            for _ in range(chance.randint(1, 8))
        }
        formats.find_weights(dtypes, named)

    def record(self, chance: random.Random, folder: Path) -> None:
        """A published folder: hswq.json and metrics.json, and the card that is made of them."""
        record, metrics = self._right.record, self._right.metrics
        record = mutate.mutated(chance, record) if chance.random() < 0.8 else record
        metrics = mutate.mutated(chance, metrics) if chance.random() < 0.3 else metrics
        for name, document in (("hswq.json", record), ("metrics.json", metrics)):
            content = mutate.text(chance, document) if chance.random() < 0.2 else json.dumps(document)
            (folder / name).write_text(content, encoding="utf-8", errors="surrogatepass")
        (folder / "images").mkdir(exist_ok=True)
        for picture in (SHOWN / "images").glob("*.png"):
            if not (folder / "images" / picture.name).exists():
                (folder / "images" / picture.name).symlink_to(picture)
        text = write_card(folder).read_text(encoding="utf-8")
        assert text.replace("\n", "").isprintable()

    def civitai(self, chance: random.Random, folder: Path) -> None:
        file = {
            "id": 7, "name": "dark.safetensors", "type": "Model", "sizeKB": 1234.5, "primary": True,
            "pickleScanResult": "Success", "virusScanResult": "Success", "downloadUrl": "https://civitai.com/x",
            "metadata": {"fp": "fp16", "size": "full", "format": "SafeTensor"}, "hashes": {"SHA256": "AB" * 32},
        }  # fmt: skip
        picture = {"id": 1, "url": "https://image/x/00000001.jpeg", "nsfwLevel": 1, "hasMeta": True,
                   "meta": {"prompt": "a fox", "negativePrompt": "bad"}}  # fmt: skip
        version = {
            "id": VERSION, "modelId": MODEL, "name": "v8", "baseModel": "ZImageTurbo", "availability": "Public",
            "files": [file, {**file, "id": 8, "primary": False}], "images": [picture], "usageControl": "Download",
        }  # fmt: skip
        model = {
            "id": MODEL, "name": "Dark", "type": "Checkpoint", "nsfw": False, "nsfwLevel": 1, "allowNoCredit": True,
            "allowCommercialUse": ["Image"], "allowDerivatives": True, "allowDifferentLicense": True, "mode": None,
            "creator": {"username": "alice"}, "modelVersions": [version],
        }  # fmt: skip
        bodies = {"model-versions": version, "models": model, "images": {"items": [picture]}}
        changed = {name: mutate.mutated(chance, body) for name, body in bodies.items() if chance.random() < 0.6}
        bodies = {name: body if isinstance(body, dict) else {} for name, body in (bodies | changed).items()}

        def answer(path: str) -> tuple[int, dict]:
            status = 200 if chance.random() < 0.95 else chance.choice([400, 401, 403, 404, 410, 451, 500])
            return status, bodies[path.split("/")[3].split("?")[0]]

        site = Civitai("https://civitai.com", None)
        site.web.get_json = answer
        forms = (f"civitai:{MODEL}@{VERSION}", f"civitai:{MODEL}", "civitai:sha256:" + "ab" * 32)
        reference = parse(chance.choice(forms))
        self._listed(site.listing(reference), reference)

    def hub(self, chance: random.Random, folder: Path) -> None:
        names = ["model_index.json", "README.md", "transformer/config.json", "transformer/a.safetensors",
                 "model.safetensors", "vae/diffusion_pytorch_model.safetensors", "LICENSE.md"]  # fmt: skip
        body = {
            "id": "owner/repo", "sha": "ab" * 20, "private": False, "gated": False, "tags": ["diffusers"],
            "siblings": [
                {"rfilename": name, "size": 100, "lfs": {"size": 100, "sha256": "ab" * 32, "pointerSize": 1}}
                for name in chance.sample(names[:-1], chance.randint(1, 6))
            ],
            "cardData": {"license": "other", "license_name": "mine", "license_link": "LICENSE.md", "base_model": "a/b",
                         "widget": [{"text": "a fox", "parameters": {"negative_prompt": "bad"}}]},
        }  # fmt: skip
        body = mutate.mutated(chance, body)
        hub = Hub()
        hub._api = SimpleNamespace(model_info=lambda *_, **__: ModelInfo(**body), endpoint="https://huggingface.co")
        hub.components_size("owner/repo")
        reference = HubRef("owner/repo", chance.choice([None, "model.safetensors", "transformer", mutate.name(chance)]))
        self._listed(hub.listing(reference), reference)

    def _listed(self, listing, reference) -> None:
        """What a listing leads to stays where it belongs, and is shown as text."""
        for name in (listing.name, *(file.name for file in listing.files)):
            assert name and name not in (".", "..") and not set(name) & set("/\\\0") and len(name) < 250, name[:300]
        for line in found_lines(Found(str(reference), SourceSettings(base=str(ROOT)), reference, listing, None)):
            assert line.isprintable() and len(line) < 1000, line[:300]
        listing.check_permitted(False)

    def reference(self, chance: random.Random, folder: Path) -> None:
        text = chance.choice(REFERENCES)
        for _ in range(chance.randint(1, 3)):
            text = mutate.word(chance, text)
        if chance.random() < 0.2:
            locate(text, None, None, HubOptions(local_files_only=True, cache_dir=folder))
        found = parse(text)
        str(found), identify(text)
        if isinstance(found, HubRef):
            assert ".." not in (found.path or "").split("/") and not (found.path or "").startswith("/")
        if not isinstance(found, LocalRef):
            said = replace(found, **_unsaid(found))
            assert replace(parse(str(found)), **_unsaid(found)) == said, "its short form means another"

    def prompts(self, chance: random.Random, folder: Path) -> None:
        text = "a red fox\n\n(masterpiece:1.2), <lora:x:0.8>, ((word)) BREAK [a|b]\nb\\(c\\)\n"
        for _ in range(chance.randint(1, 4)):
            text = mutate.word(chance, text)
        said = clean(text)
        assert said is None or (said.isprintable() and len(said) <= 2000)
        encoding = chance.choice(["utf-8", "utf-8", "utf-16", "latin-1", "utf-8-sig"])
        content = text.encode(encoding, errors="replace") * chance.choice([1, 1, 1, 300])
        path = folder / "prompts.txt"
        path.write_bytes(content)
        other = chance.choice([None, path, folder, folder / "missing"])
        given = GivenPrompts.read(PromptSettings(path, other))
        assert given.calibration and all(len(prompt) <= 2000 for prompt in given.calibration.prompts)

    def vae(self, chance: random.Random, folder: Path) -> None:
        stated = {"sample_size": 1024, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
        (folder / "vae").mkdir(exist_ok=True)
        (folder / "vae/config.json").write_text(json.dumps(mutate.mutated(chance, stated)))
        found = vae_of(str(folder), HubOptions())
        size = GenerationSettings.of(ARCHITECTURES["z-image"], found).size
        assert size >= 16 and vae_flops(found, size) < 1e18 and picture_values(found, size) < 1e18
        assert 1 <= pixels_a_token(found) <= 1024

    def link(self, chance: random.Random, folder: Path) -> None:
        query = {"prompt": "a fox", "negative": "bad", "seed": "7", "steps": "8", "guidance": "1.5", "size": "512",
                 "variants": "original|V2", "lora": "a/b"}  # fmt: skip
        for name in list(query):
            if chance.random() < 0.3:
                query[name] = mutate.word(chance, query[name])
        if chance.random() < 0.5:
            request_from_query(query, LIMITS)
        fields = ["a fox", "bad", 7, 8, 1.5, 512, ["original", "V2"], "a/b"]
        for number in range(len(fields)):
            if chance.random() < 0.25:
                fields[number] = mutate.mutated(chance, [fields[number]])
                if isinstance(fields[number], list) and fields[number] and chance.random() < 0.9:
                    fields[number] = fields[number][0]
        validated_request(LIMITS, *fields)


def _unsaid(found) -> dict:
    """What the short form of a reference leaves out."""
    names = {"host": "civitai.com", "file": None, "wishes": ()}
    return {name: instead for name, instead in names.items() if hasattr(found, name)}


NAMES = ("header", "stand_in", "metadata", "mark", "record", "civitai", "hub", "reference", "prompts", "vae", "link")
assert all(hasattr(Targets, name) for name in NAMES)
