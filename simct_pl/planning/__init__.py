"""What a recipe's run would hold, before it runs. Loads no weights, needs no GPU.

In: a recipe's components, made without a trainer. Out: a Plan: the step it would take, and the memory of one rank, item
by item; as sections of words for a terminal or a page.

    run         a recipe → its parts, checked, and their plan; where `fit --dry_run` and `preflight` start
    deployment  the trainer's settings → how many ranks, on what
    samples     the recipe's own prompts, and how long they are in tokens
    step        sizes and dtypes of one optimizer step
    plan        module, rollouts, deployment, lengths → Plan; supervised: the same for fine-tuning
    rehearsing  the recipe's own step, run without values (simct_pl/rehearsal)
    teachers    of several the one that is rehearsed, and what the others hold
    memory      what a rehearsal held, and what lives beside it → memory items and their peak
    words, section  a Plan → tables
"""
