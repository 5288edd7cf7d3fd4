"""Whole training steps as one program: forward, loss, backward and the optimizer's update.

step         `dlcompiler.train_step`
update       `dlcompiler.update_step`: the last part of it alone
joint        a loss function and its gradients as one Graph
optimizers   what each of torch's optimizers does to one parameter, written in the IR
hyperparameters   the numbers of an optimizer that change from call to call, and which parameters share them
"""
