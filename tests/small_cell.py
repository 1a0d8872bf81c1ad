"""One run of a comparison that takes no time."""

from benchmarks.records.cell import Cell

CELL = Cell(
    task="s3",
    variant="bdlru-m1",
    mixer="bdlru",
    mixer_args={"block_size": 1, "num_blocks": 8},
    width=16,
    layers=1,
    mlp_width=32,
    lengths=(4,),
    eval_lengths=(4,),
    batch_size=8,
    steps=2,
    lr=3e-3,
    weight_decay=0.01,
    seed=0,
    train_examples=0,
    eval_examples=8,
)
