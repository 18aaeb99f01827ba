"""Log-probabilities and entropies of tokens from hidden states, without ever holding [M, V] logits.

With z = softcap(hidden W^T + bias) / temperature, one row per token (M = tokens to score):

    logp = z[token] - logsumexp(z)          d logp / dz    = onehot(token) - p
    entropy H = -sum_v p_v log p_v          d H / dz_v     = -p_v (log p_v + H)

The vocabulary projection is most of the memory of training with a large vocabulary: 4,096 tokens of V = 151,936 are
2.5 GB per copy of the logits in float32. `token_logprobs` walks over chunks of rows and forms each chunk's logits
again in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_pg.functional import shapes

CHUNK_LOGITS = 1 << 25  # logits alive at once by default: 128 MB in float32, per temporary
CACHE_LOGITS = 1 << 19  # logits that the softmax works on at once: 2 MB in float32


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute log pi(token) and the entropy of the whole distribution for each row: (logp [M], entropy [M]).

    hidden [M, H], weight [V, H], tokens [M] int64, bias [V] (None: the head has none), softcap: z -> softcap * tanh(z
    / softcap) (None: not used; Gemma 2). Both results carry gradient. `chunk` rows at a time, forward and backward, so
    memory is O(chunk * V); None chooses about CHUNK_LOGITS logits. The projection runs in the dtype of `hidden`
    (autocast is off), the softmax in float32 or wider, which is the dtype of the results. With one chunk it can be
    differentiated twice. ValueError if shapes or dtypes do not fit, or temperature, chunk or softcap is not positive.
    """
    _check(hidden, weight, tokens, bias, temperature, softcap)
    rows = _rows(weight, chunk)
    if hidden.shape[0] <= rows:
        if softcap is not None:
            return from_logits(_head(hidden, weight, bias, softcap), tokens, temperature)
        return _OneChunk.apply(hidden, weight, bias, tokens, temperature)
    return _Chunked.apply(hidden, weight, bias, tokens, temperature, softcap, rows)


def from_logits(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute the same from logits: logits [..., V], tokens [...] int64 -> (logp [...], entropy [...]).

    Softmax in float32 or wider. ValueError if the shapes do not fit or the temperature is not positive.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"logits {list(logits.shape)} need tokens {list(logits.shape[:-1])}, got {list(tokens.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    log_p = _log_softmax(logits, temperature)  # [..., V]
    logp = log_p.gather(-1, tokens[..., None]).squeeze(-1)
    return logp, -(log_p.exp() * log_p).sum(dim=-1)


def distribution_kl(
    hidden: Tensor,
    weight: Tensor,
    hidden_old: Tensor,
    weight_old: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    bias: Tensor | None = None,
    bias_old: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Compute KL(old || new) = sum_v p_old (log p_old - log p) of the whole distribution at each state -> [M].

    hidden, hidden_old [M, H]; weight, weight_old [V, H]; bias, bias_old [V] or None; the rest as in `token_logprobs`.
    Gradient flows to hidden, weight and bias only. Its Hessian at new = old is the Fisher matrix (TRPO). Summed as
    (p - p_old) - p_old (log p - log p_old), whose first part adds to 0: no term is negative but by rounding, the
    rounding of a logsumexp cancels, and at new = old value and gradient are exactly 0. Softmax in float32 or wider.
    Chunks of rows are formed again in the backward pass: memory O(chunk * V). ValueError as in `token_logprobs`.
    """
    shapes.same(hidden=hidden, hidden_old=hidden_old)
    shapes.same(weight=weight, weight_old=weight_old)
    for h, w, b in ((hidden, weight, bias), (hidden_old, weight_old, bias_old)):
        _check(h, w, None, b, temperature, softcap)

    def part(h: Tensor, h_old: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.no_grad():
            log_old = _log_softmax(_head(h_old, weight_old, bias_old, softcap), temperature)  # [m, V]
            old = log_old.exp()
        log_new = _log_softmax(_head(h, weight, bias, softcap), temperature)  # [m, V]
        return (log_new.exp() - old - old * (log_new - log_old)).sum(dim=-1)

    rows = _rows(weight, chunk)
    if hidden.shape[0] <= rows:
        return part(hidden, hidden_old, weight, bias)
    pieces = zip(hidden.split(rows), hidden_old.split(rows), strict=True)
    kl = [checkpoint(part, *p, weight, bias, use_reentrant=False, preserve_rng_state=False) for p in pieces]
    return torch.cat(kl)  # pyright: ignore[reportArgumentType]


def _rows(weight: Tensor, chunk: int | None) -> int:
    """Return the rows of a chunk: `chunk`, or as many as CHUNK_LOGITS holds."""
    rows = max(1, CHUNK_LOGITS // weight.shape[0]) if chunk is None else chunk
    if rows < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1 row")
    return rows


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (wide if temperature == 1 else wide / temperature).log_softmax(dim=-1)


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Compute logits [m, V] before temperature, in the dtype of `hidden` (float32 or wider after a softcap)."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden, weight, bias)
    if softcap is None:
        return logits
    return softcap * torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / softcap)


class _OneChunk(torch.autograd.Function):
    """`from_logits(_head(...))` of one chunk, keeping one [M, V] tensor: exp(z - max z), which both gradients are
    made of. Rows go through the softmax a few at a time, so that its passes stay in a processor's cache."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, tokens, temperature):
        logits = _head(hidden, weight, bias, None)
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))  # [M, V]
        logp, entropy, total = (z.new_empty(len(z)) for _ in range(3))
        for start in range(0, len(z), step := max(1, CACHE_LOGITS // z.shape[1])):
            part = slice(start, start + step)
            shifted = z[part] if temperature == 1 else z[part].div_(temperature)
            shifted.sub_(shifted.amax(dim=-1, keepdim=True))
            sampled = shifted.gather(1, tokens[part, None]).squeeze(1)
            power = shifted.exp()
            total[part] = power.sum(dim=-1)
            logs = total[part].log()
            logp[part] = sampled - logs
            entropy[part] = logs - torch.linalg.vecdot(power, shifted) / total[part]
            shifted.copy_(power)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(hidden, weight, bias, tokens, z, total, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx, grad_logp, grad_entropy):
        hidden, weight, bias, tokens, power, total, entropy = ctx.saved_tensors
        unused = grad_entropy is None  # known without a look at a device's numbers
        grad_logp, grad_entropy = (torch.zeros_like(entropy) if g is None else g for g in (grad_logp, grad_entropy))
        if torch.is_grad_enabled():  # to be differentiated again
            outputs = from_logits(_head(hidden, weight, bias, None), tokens, ctx.temperature)
            inputs = [x for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            gradients = iter(torch.autograd.grad(outputs, inputs, (grad_logp, grad_entropy), create_graph=True))
            return *(next(gradients) if needed else None for needed in ctx.needs_input_grad[:3]), None, None
        of_p, per_log = -grad_logp, None
        if not unused and grad_entropy.any():
            of_p, per_log = of_p - grad_entropy * (entropy - total.log()), grad_entropy / total
        slope = power * (of_p / total)[:, None]  # [M, V]
        if per_log is not None:
            slope -= torch.xlogy(power, power).mul_(per_log[:, None])
        slope.scatter_add_(1, tokens[:, None], grad_logp[:, None])
        slope = (slope if ctx.temperature == 1 else slope.div_(ctx.temperature)).to(hidden.dtype)
        return (
            slope @ weight if ctx.needs_input_grad[0] else None,
            slope.t() @ hidden if ctx.needs_input_grad[1] else None,
            slope.sum(dim=0) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


class _Chunked(torch.autograd.Function):
    """`from_logits(_head(...))` chunk by chunk; saves only its inputs and makes each chunk's logits twice."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, tokens, temperature, softcap, rows):
        ctx.save_for_backward(hidden, weight, bias, tokens)
        ctx.temperature, ctx.softcap, ctx.rows = temperature, softcap, rows
        ctx.set_materialize_grads(False)
        parts = [
            from_logits(_head(h, weight, bias, softcap), token, temperature)
            for h, token in zip(hidden.split(rows), tokens.split(rows), strict=True)
        ]
        return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logp, grad_entropy):
        hidden, weight, bias, tokens = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(weight.dtype, torch.float32)  # many chunks are summed: not in bfloat16
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        if grad_entropy is not None and not grad_entropy.any():
            grad_entropy = None
        for start in range(0, hidden.shape[0], ctx.rows):
            part = slice(start, start + ctx.rows)
            grad_of_logp = None if grad_logp is None else grad_logp[part]
            grad_of_entropy = None if grad_entropy is None else grad_entropy[part]
            logits = _head(hidden[part], weight, bias, ctx.softcap)
            slope = _grad_logits(logits, tokens[part], grad_of_logp, grad_of_entropy, ctx.temperature, ctx.softcap)
            slope = slope.to(hidden.dtype)  # [m, V]
            if grad_hidden is not None:
                torch.mm(slope, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _add_product(grad_weight, slope, hidden[part])
            if grad_bias is not None:
                grad_bias += slope.sum(dim=0)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _grad_logits(
    logits: Tensor,
    tokens: Tensor,
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> Tensor:
    """Compute the gradient for the head's logits before softcap [m, V], by the equations at the top of this file."""
    log_p = _log_softmax(logits, temperature)  # [m, V]
    p = log_p.exp()  # [m, V]
    if grad_entropy is None:
        slope = p.mul_(-grad_logp[:, None]) if grad_logp is not None else p.zero_()
    else:
        entropy = -(p * log_p).sum(dim=-1, keepdim=True)  # [m, 1]
        inner = log_p.add_(entropy).mul_(grad_entropy[:, None])  # g_H (log p + H)
        if grad_logp is not None:
            inner += grad_logp[:, None]
        slope = p.mul_(-inner)
    if grad_logp is not None:
        slope.scatter_add_(1, tokens[:, None], grad_logp[:, None])
    slope /= temperature
    if softcap is not None:
        slope *= 1 - (logits / softcap).square()
    return slope


def _add_product(total: Tensor, slope: Tensor, hidden: Tensor) -> None:
    """Add a product, total [V, H] += slope^T [V, m] @ hidden [m, H], in place where the dtypes allow it."""
    if total.dtype == slope.dtype:
        total.addmm_(slope.t(), hidden)
    else:
        total += slope.t() @ hidden


def _check(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor | None,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> None:
    """Raise ValueError where shapes, dtypes or numbers do not fit; `tokens` None: there are none to check."""
    shapes.dims(2, hidden=hidden, weight=weight)
    count = hidden.shape[:1] if tokens is None else tokens.shape
    if hidden.shape[1] != weight.shape[1] or count != hidden.shape[:1]:
        listed = f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, tokens {list(count)}"
        raise ValueError(f"{listed}: need [M, H], [V, H] and [M]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {list(bias.shape)} does not fit weight {list(weight.shape)}: need [V]")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight {weight.dtype}: cast one to the other")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap}: must be positive; leave it out for none")
