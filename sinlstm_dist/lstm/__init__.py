"""The recurrence: this package's kernel, torch.nn.LSTM, or the kernel's arithmetic in numpy.

`choose` decides which of the three is used. `lstm` is the operation on the compiled CPU kernel, and
`FusedLSTM` a torch.nn.LSTM on it.
`predictor_rows` and `predictor_totals` compute a training or an evaluation step of the predictor,
on a CPU or a GPU (cuda.py); reference.py does it in numpy. All three have the same bits.

    python -c "from sinlstm_dist import lstm; print(lstm.instruction_sets())"
"""

from sinlstm_dist.compiled import instruction_set, instruction_sets, set_instruction_set
from sinlstm_dist.lstm.choice import MAX_HIDDEN_SIZE, Choice, choose
from sinlstm_dist.lstm.module import FusedLSTM
from sinlstm_dist.lstm.predictor import predictor_rows, predictor_totals
from sinlstm_dist.lstm.recurrence import lstm

__all__ = [
    "MAX_HIDDEN_SIZE",
    "Choice",
    "FusedLSTM",
    "choose",
    "instruction_set",
    "instruction_sets",
    "lstm",
    "predictor_rows",
    "predictor_totals",
    "set_instruction_set",
]
