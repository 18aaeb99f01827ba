"""Low-rank adapters by PEFT (LoRA, Hu et al. 2021, arXiv:2106.09685): W = W0 + alpha / rank * B A.

W0 stays as `model.path` has it, bit for bit. B starts at 0, so the policy starts as W0; the reference is the policy
with its adapter switched off. A run trains, saves and sends to an engine only A and B.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_pg.models import named_weights
from rlhf_pg.models.packed_attention import base_attention
from rlhf_pg.names import nearest
from rlhf_pg.storage.atomic_io import TEMPORARY, replace_folder, usual_modes

ALL_LINEAR = "all-linear"  # PEFT's word for all linear layers but the head
SEPARATORS = re.compile(r"[\s,|]+")
NAME = re.compile(r"[\w.]+")  # of a module, or the end of it
LAYERS = (nn.Linear, Conv1D)
QUANTIZED = ("Params4bit", "Int8Params")  # bitsandbytes' weights


def add_adapter(model: PreTrainedModel, lora, seed: int = 0) -> PreTrainedModel:
    """Add a new LoRA adapter drawn from `seed` (`lora`: the recipe's section); only the adapter is trainable.

    Raises ValueError for targets that no module has, and for an adapter on an embedding that is also the head.
    """
    from peft import LoraConfig, get_peft_model

    targets = _targets(model, lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(model, config)
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and hasattr(adapted.get_input_embeddings(), "lora_embedding_A"):
        raise ValueError("model.lora.targets names the embedding, which is also this model's head: leave it out")
    return adapted


def _targets(model: nn.Module, targets: str | list[str]) -> str | list[str]:
    """Return `model.lora.targets` as PEFT wants them: names in a list, a regular expression on whole names as text.

    Text of names, with commas, bars or spaces between them, is names. Raises ValueError for a name or an expression
    that fits no module, or one that an adapter cannot be put on.
    """
    if isinstance(targets, str) and targets.strip().lower() == ALL_LINEAR:
        return ALL_LINEAR
    text = targets if isinstance(targets, str) else ",".join(targets)
    names = [name for name in SEPARATORS.split(text) if name]
    if not names:
        raise ValueError(f"model.lora.targets: it names no module{_linears(model)}")
    modules = dict(model.named_modules())
    if isinstance(targets, str) and not all(NAME.fullmatch(name) for name in names):
        _refuse_unsupported(model, [name for name in modules if _full_match(targets, name)], targets)
        return targets
    for target in names:
        fitting = [name for name in modules if name == target or name.endswith(f".{target}")]
        leaves = sorted({name.rpartition(".")[2] for name in modules})
        if not fitting:
            raise ValueError(
                f"model.lora.targets: no module {target!r}{nearest(target.lower(), leaves)}{_linears(model)}"
            )
        _refuse_unsupported(model, fitting, target)
    return names


def _refuse_unsupported(model: nn.Module, fitting: list[str], target: str) -> None:
    """Raise ValueError unless something fits a target, and all of it can have an adapter."""
    if not fitting:
        example = next(name for name, module in model.named_modules() if isinstance(module, LAYERS))
        raise ValueError(
            f"model.lora.targets: no module fits the regular expression {target!r}, which has to match a whole name, "
            f"such as {example}{_linears(model)}"
        )
    other = next((name for name in fitting if not isinstance(model.get_submodule(name), (*LAYERS, nn.Embedding))), None)
    if other is not None:
        kind = type(model.get_submodule(other)).__name__
        raise ValueError(
            f"model.lora.targets: {target!r} fits {other or 'the whole model'}, a {kind}, and adapters go on linear "
            f"layers{_linears(model)}"
        )


def _full_match(expression: str, name: str) -> bool:
    try:
        return re.fullmatch(expression, name) is not None
    except re.error as error:
        raise ValueError(f"model.lora.targets: {expression!r} is not a regular expression ({error})") from error


def _linears(model: Any) -> str:
    """Say which linear layers a model has but its head, by the last part of their names."""
    head = model.get_output_embeddings()
    layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS) and module is not head]
    return f"; linear layers of this model: {', '.join(sorted({name.rpartition('.')[2] for name in layers}))}"


def has_adapter(model: nn.Module) -> bool:
    """Return whether PEFT has wrapped the model."""
    return hasattr(model, "disable_adapter")


# ---- what a checkpoint holds


def is_learned(module: nn.Module) -> Callable[[str], bool]:
    """Return a test of names in the module's state: all if nothing is frozen, else the trained parameters'."""
    trained = {name: p.requires_grad for name, p in module.named_parameters(remove_duplicate=False)}
    return lambda name: all(trained.values()) or trained.get(name, False)


def learned(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's state without its frozen weights, or all of it if none is frozen."""
    included = is_learned(module)
    return {name: tensor for name, tensor in module.state_dict().items() if included(name)}


def load_learned(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Load what `learned` returned. ValueError, before anything changes, if names or shapes are not the module's."""
    current = learned(module)
    wrong = [
        f"{name} {_shape(saved, name)} (here {_shape(current, name)})"
        for name in sorted(current.keys() | saved.keys())
        if _shape(current, name) != _shape(saved, name)
    ]
    if wrong:
        raise ValueError(f"the checkpoint is of another model: {len(wrong)} tensors differ, such as {wrong[0]}")
    module.load_state_dict(dict(saved), strict=False)


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(list(tensors[name].shape)) if name in tensors else "absent"


# ---- export


def save_adapter(model: PreTrainedModel, folder: Path, beside: Mapping[str, bytes] | None = None) -> None:
    """Write the model's adapter, if it has one, in PEFT's format, with more files `beside` it, such as a model card.

    A killed writer leaves no partial folder.
    """
    if not has_adapter(model):
        return
    unfinished = folder.with_name(f"{TEMPORARY}{folder.name}")
    model.save_pretrained(str(unfinished))
    (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's template of a model card, all blanks
    for name, content in (beside or {}).items():
        (unfinished / name).write_bytes(content)
    usual_modes(unfinished)
    replace_folder(unfinished, folder)


def merged(model: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Return (the model without adapter and without storage, its weights W0 + alpha / rank * B A by name).

    Tied weights are returned once; quantized ones dequantized, with the values they compute with. The live model does
    not change.
    """
    base = named_weights.without_adapter(model)
    quantized = {name: module for name, module in base.named_modules() if _is_quantized(module)}
    others = {name for name, _ in base.named_modules()} - quantized.keys()
    weights = dict(named_weights.weights(model, modules=others))
    for name, module in quantized.items():
        weights |= {f"{name}.{leaf}": tensor for leaf, tensor in _dequantized(module)}
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._attn_implementation = base_attention(config)
    with torch.device("meta"):
        empty = type(base)(config)
    empty.generation_config = base.generation_config
    return empty, weights


def _is_quantized(module: Any) -> bool:
    """Return whether a linear layer, or the one under an adapter, has quantized weights."""
    return type(getattr(getattr(module, "base_layer", module), "weight", None)).__name__ in QUANTIZED


@torch.no_grad()
def _dequantized(module: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the weight, with the low-rank change added, and the bias of a quantized linear layer."""
    from peft.utils.integrations import dequantize_module_weight

    layer = getattr(module, "base_layer", module)
    weight = dequantize_module_weight(layer).detach()
    for adapter in getattr(module, "active_adapters", ()):
        weight = weight + module.get_delta_weight(adapter)
    yield "weight", weight
    if layer.bias is not None:
        yield "bias", layer.bias.detach()


# ---- quantized weights under an adapter (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)


def quantization(bits: Literal["4bit", "8bit"], arithmetic: torch.dtype) -> Any:
    """Return transformers' settings for 8-bit weights, or 4-bit ones (NF4, quantization constants quantized too).

    Raises ValueError if there is no CUDA device or no bitsandbytes.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils.import_utils import is_bitsandbytes_available

    if not torch.cuda.is_available():
        raise ValueError(f"model.quantize: {bits} weights need a CUDA device, and there is none; leave it out")
    if not is_bitsandbytes_available():
        raise ValueError(f"model.quantize: {bits} weights need bitsandbytes: pip install 'rlhf_pg[quantize]'")
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=arithmetic,
    )
