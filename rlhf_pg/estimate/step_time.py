"""How long a step takes at given rates: the floor of `plan_work` over what the device reaches.

rollout         per decode step the longest of: weights and cache read, operations, launches; and the prompts' forward
update          operations / (rate x mfu)
communication   per optimizer step what the layout sends, at the slowest link on the way; nothing is overlapped
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout import Layout
from rlhf_pg.estimate.memory import FLOAT32
from rlhf_pg.estimate.model_size import Size
from rlhf_pg.estimate.share import Share
from rlhf_pg.estimate.work import Work

NODE = 8  # GPUs that share the fast link
BETWEEN_NODES = 50e9  # bytes a second and GPU: a 400 Gb/s network card each
HOST = 25e9  # bytes a second between a GPU and its host's memory, and of the optimizer that works there
LAUNCHES = 20  # operations of a decode step's layer (rollout/llama_decode.py)
ADAM_TRAFFIC = 7 * FLOAT32  # bytes a parameter that AdamW reads and writes


@dataclass(frozen=True)
class StepTime:
    """Seconds of one rollout step."""

    rollout: float
    update: float
    communication: float

    @property
    def step(self) -> float:
        return self.rollout + self.update + self.communication


def step_time(share: Share, size: Size, made: Work, layout: Layout, device: Device) -> StepTime | None:
    """Of a layout, every process on such a device; None where the device's rates are not known."""
    if device.flops is None or device.bandwidth is None:
        return None
    rate = device.flops * device.mfu
    per_step = made.rollout_flops / rate / made.decode_steps
    launches = size.layers * LAUNCHES * device.launch
    decode = made.decode_steps * max(made.rollout_bytes / made.decode_steps / device.bandwidth, per_step, launches)
    return StepTime(decode, made.update_flops / rate, _communication(share, size, made, layout, device))


def _communication(share: Share, size: Size, made: Work, layout: Layout, device: Device) -> float:
    update = share.recipe.update
    optimizer_steps = update.epochs * update.minibatches
    link = device.link if layout.processes <= NODE else min(device.link, BETWEEN_NODES)
    sent, apart = 0.0, (layout.processes - 1) / layout.processes
    trained, whole = size.trainable * FLOAT32, size.parameters * FLOAT32
    if layout.stage == 3:
        gathers = made.passes * share.micro_batches * update.minibatches + 1  # and once for the engine
        sent = apart * (whole * gathers + trained * share.micro_batches * optimizer_steps)
    elif layout.stage == 2:
        sent = apart * trained * (share.micro_batches + 1) * optimizer_steps
    else:
        sent = apart * 2 * trained * optimizer_steps
    offloaded = layout.of_optimizer(trained) * optimizer_steps if layout.offload else 0
    return sent / link + offloaded * 2 / HOST + offloaded / FLOAT32 * ADAM_TRAFFIC / HOST
