"""Collectives as XLA's text of a compiled program has them: axes from groups in every notation, loops, bytes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from compiled_text import collectives, reductions, table
from jax.sharding import PartitionSpec

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
TEXT = """HloModule jit_step, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %g = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %gathered = bf16[4,16]{1,0} all-gather(%g), channel_id=1, replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={1}
  ROOT %t = (s32[], bf16[4,8]{1,0}) tuple(%i, %g)
}

%always (p: (s32[], bf16[4,8])) -> pred[] {
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%outer (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %w = (s32[], bf16[4,8]{1,0}) while(%p), condition=%always, body=%inner, backend_config={TRIPS:{"n":"3"}}
}

%unreached (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %r = f32[4,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

ENTRY %main (a: f32[4,8], s: f32[], b: (s32[], bf16[4,8])) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %s = f32[] parameter(1)
  %b = (s32[], bf16[4,8]{1,0}) parameter(2)
  %loop = (s32[], bf16[4,8]{1,0}) while(%b), condition=%always, body=%outer, backend_config={TRIPS:{"n":"5"}}
  %alone = f32[4,8]{1,0} all-reduce(%a), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %scalar = f32[] all-reduce(%s), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %named = (f32[4,8]{1,0}, f32[]) all-reduce(%a, /*index=1*/%s), replica_groups=NAMED {'data'}, to_apply=%add
  %moved = f32[4,8]{1,0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
  ROOT %all = f32[4,8]{1,0} reduce-scatter(f32[4,8]{1,0} %a), replica_groups={}, to_apply=%add
}
""".replace("TRIPS", '"known_trip_count"').replace("NAMED", "mesh['data'=2,'fsdp'=2,'tensor'=2]")


def test_axes_loops_and_bytes():
    found = {(one.kind, one.axes): one for one in collectives(TEXT, MESH) if one.bytes_of_arrays}
    assert set(found) == {
        ("all-gather", ("fsdp",)), ("all-reduce", ("data",)), ("collective-permute", ("tensor",)),
        ("reduce-scatter", ("data", "fsdp", "tensor")),
    }  # fmt: skip
    gather = found["all-gather", ("fsdp",)]
    assert (gather.depth, gather.times, gather.bytes, gather.dtypes) == (2, 15, 64, {"bf16"})
    summed = found["all-reduce", ("data",)]
    assert (summed.depth, summed.times, summed.bytes, summed.bytes_of_arrays) == (0, 1, 132, 128)
    assert table(collectives(TEXT, MESH))["all-gather", ("fsdp",), 2, ("bf16",)] == (1, 15 * 64)


def test_sums_of_scalars_are_no_reductions():
    found = collectives(TEXT, MESH)
    assert len([one for one in found if one.kind == "all-reduce"]) == 2  # along an axis of one device nothing is sent
    assert [one.kind for one in reductions(found, "data")] == ["all-reduce", "reduce-scatter"]


def test_what_is_no_program_of_this_mesh_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("nothing", MESH)
    with pytest.raises(ValueError, match="mesh of 2"):
        collectives(TEXT, {"data": 2})


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize("axis", MESH)
def test_a_program_that_was_compiled_here(axis):
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(jax.sharding.AxisType.Auto,) * 3)

    def summed(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: jax.lax.psum(y * 0.5, axis), x)

    whole = PartitionSpec()
    function = jax.jit(jax.shard_map(summed, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False))
    found = collectives(function.lower(jnp.zeros((4, 8))).compile().as_text(), MESH)
    facts = [(one.kind, one.axes, one.depth, one.times, one.bytes) for one in found]
    assert facts == [("all-reduce", (axis,), 1, 3, 128)]


def test_a_collective_sent_in_pieces_counts_once():
    """As libtpu writes those of v5e that run beside the arithmetic: again in every computation that sends a piece."""
    gathered = "all-gather(%g), channel_id=1, replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={1}"
    in_chain = f'{gathered}, frontend_attributes={{chain_id="0"}}'
    chained = TEXT.replace(gathered, in_chain)
    pieces = chained.replace("  ROOT %t =", f"  %piece = bf16[4,16]{{1,0}} {in_chain}\n  ROOT %t =")
    assert collectives(pieces, MESH) == collectives(chained, MESH) == collectives(TEXT, MESH)
    assert len(collectives(pieces.replace("chain_id", "other"), MESH)) == len(collectives(TEXT, MESH)) + 1
