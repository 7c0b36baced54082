"""Block sizes that were measured go before the table, for the chip and the sizes they were measured for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import BlockSizes, Causal, attention
from pallas_kernels.blocks import Measured, chip_name, load_measured, resolve, save_measured, tpu_blocks
from pallas_kernels.tune import main, milliseconds, tune


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    path = tmp_path / "measured.json"
    monkeypatch.setenv("PALLAS_KERNELS_MEASURED", str(path))
    save_measured({})
    yield path
    monkeypatch.undo()
    load_measured.cache_clear()


def test_the_fastest_pair_is_found_and_used(table, capsys):
    timed = []

    def timer(function, arguments):
        """Takes what is asked for from the kernel's own grid, so that nothing needs to run."""
        text = str(jax.make_jaxpr(function)(*arguments))
        name = "attention_backward" if "attention_backward" in text else "attention_forward"
        timed.append(name)
        return {1: 3.0, 2: 2.0, 3: 1.0, 4: 0.5}[1 + len(timed) % 4]

    found = tune(16, 256, "tpu", (128, 256), timer, interpret=True)
    assert (found.head, found.length) == (16, 256)
    assert timed == ["attention_forward"] * 4 + ["attention_backward"] * 4
    assert found[2:] == (256, 128, 256, 128)  # the third of each four was said to take 0.5 ms
    save_measured({chip_name(): [found]})
    assert load_measured() == {chip_name(): [found]}
    assert resolve(None, 16, 256)[:4] == found[2:]
    assert resolve(BlockSizes(keys=384), 16, 256)[:4] == (256, 384, 256, 128)


def test_the_nearest_head_and_length():
    near, far, other = Measured(64, 512, *[128] * 4), Measured(64, 8192, *[256] * 4), Measured(128, 512, *[512] * 4)
    save_measured({"v5e": [near, far, other]})
    assert resolve(BlockSizes(chip="v5e"), 64, 700)[:4] == near[2:]
    assert resolve(BlockSizes(chip="v5e"), 80, 100_000)[:4] == far[2:]
    assert resolve(BlockSizes(chip="v5e"), 256, 8192)[:4] == other[2:]
    assert resolve(BlockSizes(chip="v6e"), 64, 700)[:4] == (0, 0, 0, 0)
    sizes = tpu_blocks(BlockSizes(chip="v5e"), 4096, 4096, 64, 0)
    assert (sizes.queries, sizes.backward_keys) == (256, 256) and sizes.forward_sub.queries == 128


def test_times_are_of_the_call():
    taken = milliseconds(jax.jit(lambda x: attention(x, x, x, mask=Causal(), backend="xla")), [jnp.ones((1, 8, 1, 4))])
    assert 0 < taken < 10_000


def test_without_a_chip_it_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "no kernels for cpu" in capsys.readouterr().err


def test_a_table_that_is_none_is_named(table):
    table.write_text('{"v5e": [{"head": 1}]}')
    load_measured.cache_clear()
    with pytest.raises(ValueError, match="measured.json: not a table of block sizes"):
        resolve(BlockSizes(chip="v5e"), 64, 512)
