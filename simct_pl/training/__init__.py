"""The training step: prompts with the student's responses in; a loss, its gradients and what it says of each unit out.

`module` is the step, read from top to bottom; what it rests on, before weights load, is `pair_module`, with a `lesson`
a teacher, and `adapted` where adapters are trained. `reading_models` loads what only reads: `teacher`, or
`teacher_server`, whose lists of likely tokens `listed_rows` makes rows of. `aligned_batch` is what the host makes of
responses and one teacher, `graded_batch` of all teachers; `student_with_loss` has the student read them, `pair_loss` a
teacher, `chunked_loss` turns hidden states into the loss sum (`dual_space_loss` where states are translated first),
`unit_stats` keeps what it says of the units. `optim` steps and skips, `collectives` is what ranks
agree on, `checks` what a trainer must be. `held_out` and `text_kl` measure, `step_timer` says where the time goes,
`model_card` what an exported student is.
"""
