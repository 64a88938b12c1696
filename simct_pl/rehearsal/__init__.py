"""A whole training step without its numbers: on a device that is not there, with models that have sizes only.

In: a student, a teacher, an objective and responses. Out: what the step would ask of a device: kernels, places at which
the host waits for it, uploads, and the most bytes alive, by phase and by line. The code is the training step's own.

    fake_cuda    a CPU build of torch told that it has a GPU, in a process of its own
    device       the mode under which tensors of the device have no values, and tensors of the host do
    values       what the host knows of such tensors all the same: ids, positions, counts
    ledger       what is counted
    models       a configuration → a model without storage, its sizes, and what it holds at work
    step         models, objective and responses → one step, rehearsed
    waits        where a host may wait for its device, and why
"""
