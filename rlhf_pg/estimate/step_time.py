"""How long a step takes at a device's rates: the floor of `work.step_work` over what the device reaches.

rollout         per decode step the longest of: weights and cache read, operations, launches; and the prompts' forward
update          operations / (rate x mfu)
communication   per optimizer step what the layout sends, at the slowest link on the way; nothing is overlapped
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout import Layout
from rlhf_pg.estimate.model_size import FLOAT32, ModelSize
from rlhf_pg.estimate.share import Share
from rlhf_pg.estimate.work import Work
from rlhf_pg.rollout.llama_decode import LAYER_OPERATIONS

NODE = 8  # GPUs that share the fast link
BETWEEN_NODES = 50e9  # bytes a second and GPU: a 400 Gb/s network card each
HOST = 25e9  # bytes a second between a GPU and its host's memory, and of the optimizer that works there
ADAM_TRAFFIC = 7 * FLOAT32  # bytes a parameter that AdamW reads and writes


@dataclass(frozen=True)
class StepTime:
    """The seconds of one rollout step."""

    rollout: float
    update: float
    communication: float

    @property
    def step(self) -> float:
        return self.rollout + self.update + self.communication


def step_time(share: Share, size: ModelSize, work: Work, layout: Layout, device: Device) -> StepTime | None:
    """Return the time in a layout whose processes each have such a device; None where its rates are not known."""
    if device.flops is None or device.bandwidth is None:
        return None
    rate = device.flops * device.mfu
    computing = work.rollout_flops / rate / work.decode_steps
    reading = work.rollout_bytes / work.decode_steps / device.bandwidth
    launching = size.layers * LAYER_OPERATIONS * device.launch
    rollout = work.decode_steps * max(reading, computing, launching)
    return StepTime(rollout, work.update_flops / rate, _communication(share, size, work, layout, device))


def _communication(share: Share, size: ModelSize, work: Work, layout: Layout, device: Device) -> float:
    update = share.recipe.update
    optimizer_steps = update.epochs * update.minibatches
    link = device.link if layout.processes <= NODE else min(device.link, BETWEEN_NODES)
    gradients, weights = size.trainable * FLOAT32, size.parameters * FLOAT32
    if layout.stage == 3:
        gathers = work.passes * share.micro_batches * update.minibatches + 1  # and once for the engine
        volume = weights * gathers + gradients * share.micro_batches * optimizer_steps
    elif layout.stage == 2:
        volume = gradients * (share.micro_batches + 1) * optimizer_steps
    else:
        volume = 2 * gradients * optimizer_steps
    sent = volume * (layout.processes - 1) / layout.processes  # what one process already has is not sent
    offloaded = layout.optimizer(gradients) * optimizer_steps if layout.offload else 0
    return sent / link + offloaded * 2 / HOST + offloaded / FLOAT32 * ADAM_TRAFFIC / HOST
