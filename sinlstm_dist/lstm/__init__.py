"""The LSTM recurrence: a compiled CPU kernel, torch.nn.LSTM, or the kernel's arithmetic in numpy.

`choose` decides which of the three is used. `lstm` is the operation on the compiled kernel.
`predictor_rows` and `predictor_totals` compute a training or an evaluation step of the predictor;
reference.py does it in numpy, with the same bits.

A GPU uses nn.LSTM. There is also an experimental Triton kernel for the predictor
(triton_experimental.py). It has never run on a GPU and is used only for lstm = "fused".

    python -c "from sinlstm_dist import lstm; print(lstm.instruction_sets())"
"""

from sinlstm_dist.compiled import instruction_set, instruction_sets, set_instruction_set
from sinlstm_dist.lstm.choice import MAX_HIDDEN_SIZE, Choice, choose
from sinlstm_dist.lstm.predictor import predictor_rows, predictor_totals
from sinlstm_dist.lstm.recurrence import lstm

__all__ = [
    "MAX_HIDDEN_SIZE",
    "Choice",
    "choose",
    "instruction_set",
    "instruction_sets",
    "lstm",
    "predictor_rows",
    "predictor_totals",
    "set_instruction_set",
]
