"""`rlhf-pg serve RECIPE`: the engine of a recipe in a process of its own, for the trainer of the same recipe."""

from __future__ import annotations

from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.data.stops import check_vocabulary, eos_ids
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.errors import RecipeError
from rlhf_pg.models.context import context_length
from rlhf_pg.models.load import load_config, load_tokenizer
from rlhf_pg.rollout import launch_server
from rlhf_pg.rollout.engine import build
from rlhf_pg.training.prompts import longest_request, prompts_of
from rlhf_pg.training.setup import engine_facts, policy_model

LOOPBACK = "127.0.0.1"


def serve(recipe: ResolvedRecipe, host: str = LOOPBACK, port: int = 0) -> int:
    """Serve until interrupted, or until the engine breaks, which is raised.

    host: the address to listen on; port: 0 for any that is free. Both are written, with a token, to `rollout.server`.
    """
    file = recipe.rollout.server
    if file is None:
        raise RecipeError(
            "rlhf-pg serve", ["rollout.server: required, but not given: a file that the trainer can read"]
        )
    trust = recipe.model.trust_remote_code
    tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.path, trust_remote_code=trust)
    model_config = load_config(recipe.model.path, trust_remote_code=trust)
    vocabulary, rollout = model_config.get_text_config().vocab_size, recipe.rollout
    check_vocabulary(tokenizer, vocabulary)
    longest = longest_request(recipe, prompts_of(recipe, tokenizer, context_length(model_config)))
    model = policy_model(recipe, recipe.model.path, Backend(recipe.model.dtype))
    stops, notes = eos_ids(tokenizer, model.config, model.generation_config, vocabulary=vocabulary)
    for note in notes:
        print(note, flush=True)
    engine = build(rollout.engine, model, stops, rollout.slots, rollout.options, **engine_facts(recipe, longest))
    try:
        listening, address = launch_server.listen(host, port)
        with listening:
            address.write(file)
            print(f"serving {rollout.engine} on {address.host}:{address.port}; trainers read {file}", flush=True)
            launch_server.serve(engine, model, listening, address, lambda text: print(text, flush=True))
    finally:
        engine.close()
    return 0
