"""The teacher's answers to prompts, spelt in the student's tokens: rollouts that are nobody's policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from simct_pl.rollout.engine import Generation, SamplingParams
from simct_pl.rollout.hf import HFEngine
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.training.module import DistillModule
from simct_pl.training.teacher import FrozenTeacher
from simct_pl.types import Prompt, Rollout


def teacher_rollouts(
    module: DistillModule, asked: Sequence[tuple[Prompt, int, int]], sampling: SamplingParams, step: int
) -> list[Rollout]:
    """One response for each (prompt, sample index, seed), in order; the teacher is moved to the module's device.

    sampling: the teacher's, in its tokens. step: what the responses are said to be of.
    """
    found: dict[int, Rollout] = {}
    for name, lesson in module.lessons.items():
        # A prompt that names no teacher has but one to ask: RolloutCallback refuses it where there are several.
        places = [i for i, (prompt, *_) in enumerate(asked) if (module.lesson_of(prompt) or lesson) is lesson]
        if not places:
            continue
        own = module.student_with_loss.loss_of(name).teacher
        assert isinstance(own, FrozenTeacher)  # RolloutCallback refuses one on a server
        teacher, tokenizer = own.to(module.device), lesson.pair.teacher
        engine = HFEngine(batch_size=len(places))
        engine.refresh(teacher.model, 0)
        prompt_ids = [tokenizer.render(asked[i][0].for_teacher) for i in places]
        generations = engine.generate(prompt_ids, [asked[i][-1] for i in places], sampling, tokenizer.stop_ids)
        for i, said in zip(places, generations, strict=True):
            found[i] = in_students_tokens(module, lesson.pair, *asked[i], said, step)
    return [found[i] for i in range(len(asked))]


def in_students_tokens(
    module: DistillModule,
    pair: TokenizerPair,
    prompt: Prompt,
    sample: int,
    seed: int,
    generation: Generation,
    step: int,
) -> Rollout:
    """The same text, and a stop if the teacher stopped; bytes that are no character (a cut one) are left out. What does
    not fit into the student's context is cut off.

    Nobody knows the student's log-probabilities of such a response while it is made: engine_logprobs is NaN.
    """
    student, teacher = pair.student, pair.teacher
    stopped = generation.finish_reason == "stop"
    # By bytes, as everywhere: the teacher's ids are spelt out and read by the student's tokenizer.
    text = teacher.response_bytes(generation.response_ids).decode(errors="ignore")
    ids = student.encode(text) + [student.stop_ids[0]] * stopped
    prompt_ids = student.render(prompt)
    # A response that is cut has no stop, and must not be taken for one that ended.
    room, reason = (module.student_context or math.inf) - len(prompt_ids), generation.finish_reason
    if len(ids) > room:
        ids, reason = ids[: max(int(room), 0)], "length"
    return Rollout(prompt, sample, prompt_ids, ids, [math.nan] * len(ids), reason, step, seed, author="teacher")
