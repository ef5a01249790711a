"""Plans a recipe's training step for 1 to 256 chips: memory, operations, what is sent, and an estimate of the time.

    python benchmarks/plan.py --config=celeba_ldm4 --topology=h100 --chips=1,8,64,256 --each=16
    PYTHONPATH=FOLDER_WITH_LIBTPU python benchmarks/plan.py --config=text2img_ldm8 --topology=v5e --chips=4,16 --fsdp=4

The same as train.py --compile-only, for several numbers of chips, with --each images a chip. Those in --compiled are
compiled; of the others memory and collectives are computed from the largest of these with as many chips in `fsdp`:
memory is the same, and what a ring sends depends on the number of chips by (n - 1) / n. `how` says which is which. No
step runs.
"""

import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from benchmarks import common
from ldm_jax.training import chips, plan

SHAPES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}  # of TPU slices


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__)
    p.add_argument("--topology", default="h100", help=f"chip: {', '.join(chips.CHIPS)}; default h100")
    p.add_argument("--chips", type=common.numbers, default=(1, 8, 64, 256), help="default 1,8,64,256")
    p.add_argument("--compiled", type=common.numbers, default=(1, 8), help="which of them are compiled, default 1,8")
    p.add_argument("--each", type=int, default=16, help="images a chip and part, default 16")
    p.add_argument("--fsdp", type=int, default=1, help="chips that share weights, from so many on; default 1")
    args, config = common.load(p, argv)
    most = chips.topology(_name(args.topology, max(args.compiled)))
    devices = plan.find(most)
    env = common.environment() | {"planned_for": most.chip.name, "compiler": "its own" if devices.real else "for CPUs"}
    made, rows = {}, []
    for number in sorted(args.chips):
        fsdp = min(args.fsdp, number)
        if number in args.compiled:
            config.mesh.fsdp, config.batch_size = fsdp, args.each * number * config.optim.accumulate
            some = _some(args.topology, number, devices)
            made[number] = plan.plan(config, some)
            print(plan.table(made[number]), flush=True)
        else:
            of = [n for n, m in made.items() if n > 1 and m.mesh["fsdp"] == fsdp]
            if not of:
                p.error(f"--chips: {number} needs a smaller number in --compiled with as many chips in fsdp")
            made[number] = scaled(made[max(of)], number)
        rows.append(row(made[number], "compiled" if number in args.compiled else "computed"))
        common.save(args, f"plan_{args.topology}", rows, env, config.dtype)
    print(f"\n{common.table(rows)}\n\n{plan.remarks(made[max(args.compiled)])}")
    return rows


def _name(chip: str, number: int) -> str:
    return f"{chip}:{SHAPES.get(number, f'1x{number}')}" if chip.startswith("v") else f"{chip}x{number}"


def _some(chip: str, number: int, devices: plan.Devices) -> plan.Devices:
    """So many of the devices, or, of TPUs, a slice of so many."""
    if devices.real and number != len(devices.devices):
        return plan.find(chips.topology(_name(chip, number)))
    return replace(devices, name=f"{number} x {devices.chip.name}", devices=devices.devices[:number])


def scaled(made: plan.Plan, number: int) -> plan.Plan:
    """The plan for more chips of the axis `data`, with as many images each."""
    before = made.mesh["data"] * made.mesh["fsdp"]
    factor = number // before
    widened = [replace(c, group=_widened(c.group, made, number)) for c in made.collectives]
    return replace(
        made,
        devices=replace(made.devices, name=f"{number} x {made.devices.chip.name}"),
        mesh={"data": made.mesh["data"] * factor, "fsdp": made.mesh["fsdp"]},
        batch=made.batch * factor,
        operations={kind: work * factor for kind, work in made.operations.items()},
        collectives=widened,
    )


def _widened(group: tuple[int, ...], made: plan.Plan, number: int) -> tuple[int, ...]:
    """The group of a collective on more chips: one within `fsdp` stays, one over `data` grows."""
    fsdp = made.mesh["fsdp"]
    if fsdp > 1 and len({place // fsdp for place in group}) == 1:
        return group
    step = group[1] - group[0] if len(group) == made.mesh["data"] else 1
    return tuple(range(0, number, step))


def row(made: plan.Plan, how: str) -> common.Row:
    computing, sending = made.computing(), made.sending()
    slow, fast = computing + sending, max(computing, sending)
    found: common.Row = {
        "chips": made.mesh["data"] * made.mesh["fsdp"], "fsdp": made.mesh["fsdp"], "batch": made.batch,
        "accumulate": made.accumulate, "trained": made.trained, "tflop": sum(made.operations.values()) / 1e12,
        "state_gib": made.state / 2**30, "frozen_gib": made.fixed / 2**30,
        "temporary_gib": None if made.temporary is None else made.temporary / 2**30,
        "peak_gib": None if made.peak is None else made.peak / 2**30, "fits": made.fits,
    }  # fmt: skip
    for kind, (number, sent) in plan.by_kind(made.collectives).items():
        found |= {kind: number, f"{kind} gib": sent / 2**30}
    return found | {
        "computing_ms": 1e3 * computing, "sending_ms": 1e3 * sending, "images_s_low": made.batch / slow,
        "images_s_high": made.batch / fast, "scaling_low": computing / slow, "scaling_high": computing / fast,
        "how": how, "compile_s": made.compile_s if how == "compiled" else None,
    }  # fmt: skip


if __name__ == "__main__":
    main()
