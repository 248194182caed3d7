"""The LSTM recurrence as one differentiable operation: a compiled CPU kernel, chosen in one place.

On a GPU there is a Triton kernel for the predictor's rows and totals, and nn.LSTM for the rest.

`choose` says whether the kernel or torch.nn.LSTM's own path is used; `lstm` is the operation;
`predictor_rows` and `predictor_totals` are a whole training or evaluation step of the predictor.

    python -c "from sinlstm_dist import lstm; print(lstm.instruction_sets())"
"""

from sinlstm_dist.lstm.choice import MAX_HIDDEN_SIZE, Choice, choose
from sinlstm_dist.lstm.compiled import instruction_set, instruction_sets, set_instruction_set
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
