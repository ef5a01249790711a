"""Collectives are read from a compiled program's text: kinds, groups, bytes, loops."""

from ldm_jax.training.collectives import Collective, of_program

PROGRAM = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}

%body.1 (p: (s32[], f32[64,512])) -> (s32[], f32[64,512]) {
  %all-reduce.1 = f32[512,512]{1,0} all-reduce(%x), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
}

ENTRY %main.9_spmd (p: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[64,512]{1,0}) while(%t), condition=%c, body=%body.1, \
backend_config={"known_trip_count":{"n":"4"}}
  %all-gather.2 = bf16[16,4]{1,0} all-gather(%y), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %all-gather-start.1 = (f32[4]{0}, f32[32]{0}) all-gather-start(%y), replica_groups=[1,8]<=[8], dimensions={0}
  %all-gather-done.1 = f32[32]{0} all-gather-done(%all-gather-start.1)
  %reduce-scatter = f32[4]{0} reduce-scatter(%y), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %several = (f32[8]{0}, f32[2]{0}) all-reduce(%z, %y), replica_groups={}, to_apply=%add
  %alone = f32[8]{0} all-reduce(%z), replica_groups=[8,1]<=[8], to_apply=%add
  ROOT %permute = f32[8]{0} collective-permute(%z), source_target_pairs={{0,1},{1,0}}
}
"""
ALL, FOUR = tuple(range(8)), (0, 1, 2, 3)


def test_every_kind_is_read():
    assert of_program(PROGRAM, 8) == [
        Collective("all-reduce", 512 * 512 * 4, ALL, times=4),
        Collective("all-gather", 16 * 4 * 2, FOUR),
        Collective("all-gather", 32 * 4, ALL),
        Collective("reduce-scatter", 4 * 4 * 4, (0, 2, 4, 6)),
        Collective("all-reduce", (8 + 2) * 4, ALL),
        Collective("collective-permute", 8 * 4, (0, 1)),
    ]


def test_a_ring_sends_so_much():
    """An all-reduce of n devices: n - 1 of n parts are added up, then passed on; a reduce-scatter is its first half."""
    assert Collective("all-reduce", 800, ALL, times=3).sent == 3 * 2 * 700
    assert Collective("reduce-scatter", 800, ALL).sent == Collective("all-gather", 800, ALL).sent == 700
    assert Collective("collective-permute", 800, (0, 1)).sent == 800
