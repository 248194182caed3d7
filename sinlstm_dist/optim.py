"""Stochastic gradient descent, as torch has it, at the price of its arithmetic."""

import inspect

import torch


class SGD(torch.optim.SGD):
    """torch.optim.SGD without what torch wraps around its methods.

    The wrappers import torch's compiler at their first call, which takes over a second at every
    start, and open a profiler's record at every step, which takes longer than this model's update.
    The methods themselves are torch's.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
    step.hooked = True  # or torch's constructor wraps it again
