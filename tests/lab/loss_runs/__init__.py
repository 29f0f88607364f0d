"""Small models really trained on the CPU, with real faults, and labels taken from a twin without the fault.

python -m tests.lab.loss_runs make --set score --into tests/runs/loss
python -m tests.lab.loss_runs make --set tune --into DIR [--only NAME ...]

tasks     the models and their data
faults    what goes wrong, and how it gets into the training
training  the loop: forward, backward, loss scale, clipping, Adam, schedule, what is logged
labels    the events of a run, from it and its twin
recipes   the runs of both sets
corpus    files: one CSV a run and labels.yaml
"""
