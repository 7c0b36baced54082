"""The models of ``on_device.py`` by ``transformers`` in PyTorch: bfloat16 by autocast, SDPA, eager and compiled."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from device_parts import CLIP_NORM, LEARNING_RATE, Sizes, hidden, name_of, random_rows, say, seconds, short


def measure(family: str, sizes: Sizes, small: Sizes) -> None:
    """Rows of the eager and, on a GPU, of the compiled model; of the smallest case where there is no GPU and no other
    device for jax."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu and _a_device_is_there():
        return say(name_of(family, sizes), kind="steps", by="PyTorch", note="PyTorch sees no GPU")
    sizes, device = (sizes, "cuda") if on_gpu else (small, "cpu")
    for form in ("eager", "compiled") if on_gpu else ("eager",):
        for rows in sizes.rows:
            try:
                facts = _step(family, sizes, rows, form, device)
            except Exception as error:  # the rest of the table is worth having
                facts = {"by": f"PyTorch, {form}", "note": f"PyTorch, {form}, {rows} rows: {short(error)}"}
            say(name_of(family, sizes), kind="steps", **facts)
            if "OutOfMemory" not in facts.get("note", ""):
                break
    return None


def _a_device_is_there() -> bool:
    import jax

    return jax.default_backend() != "cpu"


def _model(family: str, sizes: Sizes) -> Any:
    heads = sizes.width // min(64, sizes.width // 2)
    if family == "t5":
        from torch_t5 import make_t5

        return make_t5(
            vocab_size=sizes.vocabulary, d_model=sizes.width, d_kv=sizes.width // heads, num_heads=heads,
            d_ff=hidden(family, sizes), num_layers=sizes.layers, num_decoder_layers=sizes.layers,
        )  # fmt: skip
    config = transformers.GPT2Config(
        vocab_size=sizes.vocabulary, n_positions=sizes.lengths[0], n_embd=sizes.width, n_layer=sizes.layers,
        n_head=heads, n_inner=hidden(family, sizes), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).train()


def _step(family: str, sizes: Sizes, rows: int, form: str, device: str) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = True
    made = _model(family, sizes).to(device)
    model = torch.compile(made) if form == "compiled" else made
    optimizer = torch.optim.AdamW(made.parameters(), lr=LEARNING_RATE, fused=True)
    batch = {k: torch.from_numpy(a).long().to(device) for k, a in random_rows(family, sizes, rows).items()}
    if family == "t5":
        inputs = {"input_ids": batch["encoder_tokens"], "decoder_input_ids": batch["decoder_tokens"]}
    else:
        inputs = {"input_ids": batch["decoder_tokens"]}

    def step():
        with torch.autocast(device, torch.bfloat16):
            logits = model(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["targets"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    took = seconds(step, lambda _: torch.cuda.synchronize() if device == "cuda" else None, least=5.0)
    facts = {"by": f"PyTorch, {form}", "batch": rows, "tokens_s": rows * sum(sizes.lengths) / took, "seconds": took}
    return facts | {"memory_GB": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None}
