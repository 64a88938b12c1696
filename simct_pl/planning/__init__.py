"""What a recipe's run would hold, before it runs. Loads no weights, needs no GPU.

In: a recipe's components, made without a trainer. Out: a Plan: the step it would take, and the memory of one rank, item
by item; as sections of words for a terminal or a page.

    run         a recipe → its parts, checked, and their plan; where `fit --dry_run` and `preflight` start
    deployment  the trainer's settings → how many ranks, on what
    samples     the recipe's own prompts, and how long they are in tokens
    step        sizes and dtypes of one optimizer step
    plan        module, rollouts, deployment, lengths → Plan; supervised: the same for fine-tuning
    measure     a configuration → its parameters, and the bytes that its own code holds at work
    live_bytes  the instrument: operators run on tensors that have sizes and no values
    memory      measured bytes and the step → memory items and their peak
    words, section  a Plan → tables
"""
