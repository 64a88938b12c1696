"""The tokenizers' answers about the places between tokens, from which a position's categories are made.

In: VocabLinks and ids. Out: Categories and Crossings. Everything here is asked of the real tokenizers, about short
texts, once a key.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from simct_pl.losses.token_paths.categories import (
    CLASSES,
    DROPPED,
    Categories,
    Crossings,
    Links,
    Node,
    Step,
    exits,
    listed,
)
from simct_pl.losses.token_paths.vocab_links import SortedTokens, VocabLinks
from simct_pl.tokenization.bytes import as_text
from simct_pl.tokenization.readings import FOLLOWING, KINDS, Reader, followings, kind

MEMORY = 200_000  # answers that are kept
MANY = 500  # teacher tokens that go on from the same bytes
Ids = tuple[int, ...]
Side = Literal["student", "teacher"]


class Asker:
    """Answers about one pair, kept."""

    def __init__(self, links: VocabLinks) -> None:
        self.links = links
        self.behind = lru_cache(MEMORY)(self._behind)
        self.before = lru_cache(MEMORY)(self._before)
        self.inside = lru_cache(MEMORY)(self._inside)
        self.tokens: dict[Side, SortedTokens] = {"student": links.student_bytes, "teacher": links.teacher_bytes}
        self._goes_on = {side: lru_cache(MEMORY)(tokens.goes_on) for side, tokens in self.tokens.items()}

    def _text(self, reader: Reader, ids: Ids) -> bytes:
        return b"".join([reader.table.tokens[k] for k in ids])

    # ---- both models cut at the position ----

    def _behind(self, own: int, inner: Ids) -> Categories:
        """own: the realised student token. inner: the teacher's tokens from the position on that end within it."""
        vocab, label_K = self.links, self.links.student_label_K
        own_class = int(label_K[own])
        if not inner:
            return Categories(CLASSES, {}, [Step(CLASSES)], own_class, [], 0)
        links = Links(vocab.num_labels)
        left: dict[int, set[int]] = {depth: set() for depth in range(1, len(inner) + 1)}
        along: dict[int, list[tuple[int, int]]] = {}
        for token, rest in vocab.readings.student.beginning_with(inner[:1]):
            along.setdefault(token, [])
            links.find(("v", token))
            if vocab.is_tied_K[token]:
                links.join(("v", token), int(label_K[token]))
            if (exit_ := exits(links, ("v", token), rest, inner, 1)) is not None:
                along[token].append(exit_)
                left[exit_[0]].add(exit_[1])

        def node(token: int) -> Node:
            return ("v", token) if token in along else int(label_K[token])

        self._along_path(links, node, own, self._text(vocab.teacher, inner), inner, left, along, 1)
        steps = [Step(CLASSES)]
        for depth in range(1, len(inner) + 1):
            base = links.label(("default", depth))
            steps.append(Step(base, listed(links, depth, left[depth], base)))
        moved = {token: links.label(("v", token)) for token in along}
        moved = {token: label for token, label in moved.items() if label != label_K[token]}
        return Categories(CLASSES, moved, steps, links.label(node(own)), links.merged, links.num_own)

    def _along_path(self, links, node, own, path, inner, left, along, first) -> None:  # type: ignore[no-untyped-def]
        """Link what lies at the path's later depths: the default of each, and what leaves there.

        path: the bytes from the position on.
        """
        vocab = self.links
        own_length = len(vocab.student.table.tokens[own])
        reached = len(path) - sum(len(vocab.teacher.table.tokens[k]) for k in inner[first:])
        for depth in range(first, len(inner) + 1):
            front = path[:reached]
            begins = own if reached >= own_length else self._first_student(front)
            links.join(("default", depth), ("default", depth) if begins is None else node(begins))
            self._leaving(links, node, front, depth, left, along)
            if depth < len(inner):
                reached += len(vocab.teacher.table.tokens[inner[depth]])

    def _leaving(self, links, node, front, depth, left, along) -> None:  # type: ignore[no-untyped-def]
        """Teacher tokens that leave the path behind some bytes: those that students' spellings show, and longer ones."""
        vocab, tokens = self.links, self.links.student.table.tokens
        students = {k for k in along if len(tokens[k]) > len(front) and tokens[k].startswith(front)}
        asked = set(left[depth])
        for behind in {tokens[k][len(front) :] for k in students}:
            asked |= {k for k, data in vocab.teacher_bytes.beginning_with(behind) if len(data) > len(behind)}
        for token, begun in self._students_reading(front, sorted(asked), left[depth]):
            if token in left[depth] or begun in students:
                left[depth].add(token)
                links.join(("at", depth, token), node(begun))

    def _students_reading(self, front: bytes, asked: list[int], followed: set[int]) -> list[tuple[int, int]]:
        """(teacher token, what the student begins with where it reads some bytes and then that token).

        followed: teacher tokens that are read with what may follow them, too.
        """
        tokens = self.links.teacher.table.tokens
        texts = [
            (token, front + tokens[token] + following)
            for token in asked
            for following in (self._survived(token) if token in followed else (b"",))
        ]
        read = self.links.student.read([text for _, text in texts])
        return [(token, ids[0]) for (token, _), ids in zip(texts, read, strict=True) if ids]

    @lru_cache(MEMORY)  # noqa: B019 - lives as long as the pair
    def _survived(self, token: int) -> tuple[bytes, ...]:
        """What may follow a teacher token that stays the token which it is."""
        teacher = self.links.teacher
        data = teacher.table.tokens[token]
        found = followings(teacher, token)
        read = teacher.read([data + following for following in found])
        return tuple(
            following
            for following, ids in zip(found, read, strict=True)
            if not following or (ids is not None and teacher.table.tokens[ids[0]] == data)
        )

    def _first_students(self, inner: Ids, skipped: int, own: int) -> set[int]:
        """What the student would begin with where the path's tokens end before `own` does."""
        teacher, length = self.links.teacher, len(self.links.student.table.tokens[own])
        fronts = [self._text(teacher, inner[:count])[skipped:] for count in range(1, len(inner) + 1)]
        found = (self._first_student(front) for front in fronts if len(front) < length)
        return {token for token in found if token is not None}

    def _first_student(self, front: bytes) -> int | None:
        (ids,) = self.links.student.read([front])
        return ids[0] if ids else self.links.student_bytes.longest_prefix(front)

    # ---- what the tokens before it change there ----

    def _before(
        self, written: Ids, outside: int, last: int, earlier: tuple[bytes, ...], own_earlier: tuple[bytes, ...]
    ) -> Crossings:
        """written: the student's tokens that end at the position, from the one that covers the start of the teacher's
        `last` token, which ends there too. outside: bytes of them before that start. earlier, own_earlier: see
        `overreaching`, of the teacher and the student.
        """
        vocab, student, teacher = self.links, self.links.student, self.links.teacher
        wrote, part = self._text(student, written), teacher.table.tokens[last]
        reaching = {token: behind for token, behind in self._reaching(written, outside, part).items() if token != last}
        moved = {k: reaching[token] for k, token in self._read_into(reaching, part).items() if k != reaching[token]}
        excluded = self._excluded(wrote, student.table.tokens[written[-1]], part, last)
        excluded += self._contradicting("student", own_earlier)
        kinds = self._ruled_out(teacher, part, (last,)), self._ruled_out(student, wrote, written)
        return Crossings(reaching, moved, excluded, self._contradicting("teacher", earlier), *kinds)

    def _ruled_out(self, reader: Reader, text: bytes, ids: Ids) -> int:
        """Kinds of characters in front of which a side would not have cut a text as it did, as a bit mask.

        Those of the text's own last kind belong to it, and are asked about token by token.
        """
        own = as_text(text[-4:].lstrip(bytes(range(0x80, 0xC0))))
        if not own:
            return 0
        asked = [following for following in FOLLOWING if kind(following) != kind(own[-1])]
        read = reader.read([text + following.encode() for following in asked])
        kept = [found is None or tuple(found[: len(ids)]) == ids for found in read]
        survived = {kind(following) for following, is_kept in zip(asked, kept, strict=True) if is_kept}
        return sum(1 << KINDS.index(name) for name in {kind(following) for following in asked} - survived)

    def overreaching(self, side: Side, before: Ids, part: bytes) -> tuple[bytes, ...]:
        """For each start of a side's tokens `before` from which a token of its vocabulary goes past `part`, which follows
        them and ends at the position: the bytes from that start to the position. Almost always none.
        """
        tokens = self.tokens[side].reader.table.tokens
        found, front = [], part
        for token in reversed(before):
            front = tokens[token] + front
            if self._goes_on[side](front):
                found.append(front)
        return tuple(found)

    def _contradicting(self, side: Side, earlier: tuple[bytes, ...]) -> tuple[int, ...]:
        """Tokens of the other side in front of which this one reads a token from an earlier start past the position."""
        own, other = self.tokens[side], self.tokens["teacher" if side == "student" else "student"]
        found: set[int] = set()
        for front in earlier:
            longer = {k: data for k, data in own.beginning_with(front) if len(data) > len(front)}
            behind = {data[len(front) :] for data in longer.values()}
            asked = sorted({k for data in behind for k, _ in other.beginning_with(data)})
            read = own.reader.read([front + other.reader.table.tokens[k] for k in asked])
            found |= {k for k, ids in zip(asked, read, strict=True) if ids is not None and ids[0] in longer}
        return tuple(sorted(found))

    def _reaching(self, written: Ids, outside: int, part: bytes) -> dict[int, int]:
        """Teacher tokens that begin with `part` and go past it, and keep the student's cuts → what they begin there."""
        vocab = self.links
        if outside == 0:
            found = vocab.readings.teacher.beginning_with(written)
            return {token: rest[0] for token, rest in found if rest}
        front = self._text(vocab.student, written)[:outside]
        tokens = [k for k, data in vocab.teacher_bytes.beginning_with(part) if len(data) > len(part)]
        read = vocab.student.read([front + vocab.teacher.table.tokens[k] for k in tokens])
        length = len(written)
        return {
            token: ids[length]
            for token, ids in zip(tokens, read, strict=True)
            if ids is not None and len(ids) > length and tuple(ids[:length]) == written
        }

    def _read_into(self, reaching: dict[int, int], part: bytes) -> dict[int, int]:
        """Student tokens that the teacher, having read `part`, begins with one of some tokens → that token.

        Of very many (a single space is the beginning of half a vocabulary), those that the student's own cuts show.
        """
        vocab, tokens = self.links, self.links.teacher.table.tokens
        if len(reaching) > MANY:
            asked = sorted(set(reaching.values()))
        else:
            remainders = {tokens[token][len(part) :] for token in reaching}
            asked = sorted({k for data in remainders for k, _ in vocab.student_bytes.beginning_with(data)})
        read = vocab.teacher.read([part + vocab.student.table.tokens[k] for k in asked])
        return {k: ids[0] for k, ids in zip(asked, read, strict=True) if ids and ids[0] in reaching}

    def _excluded(self, wrote: bytes, before: bytes, part: bytes, last: int) -> tuple[int, ...]:
        """Teacher tokens behind `last` with which the student's token before the position would have merged."""
        vocab = self.links
        longer = [
            data[len(before) :] for _, data in vocab.student_bytes.beginning_with(before) if len(data) > len(before)
        ]
        read = vocab.teacher.read([part + behind for behind in longer])
        asked: set[int] = set()
        for behind, ids in zip(longer, read, strict=True):
            if ids is not None and ids[0] == last and len(ids) > 1:
                asked.add(ids[1])
                asked |= {k for k, data in vocab.teacher_bytes.beginning_with(behind) if len(data) > len(behind)}
        candidates = sorted(asked)
        merged = vocab.student.read([before + vocab.teacher.table.tokens[k] for k in candidates])
        tokens = vocab.student.table.tokens
        return tuple(
            k for k, ids in zip(candidates, merged, strict=True) if ids is not None and tokens[ids[0]] != before
        )

    # ---- inside a teacher token ----

    def _inside(
        self, written: Ids, outside: int, covering: int, inner: Ids, own: int, earlier: tuple[bytes, ...]
    ) -> Categories:
        """written, outside: see _before, with `covering`, which goes past the position, for `last`. inner: the
        teacher's tokens from it on that end within `own`.
        """
        vocab, teacher, student = self.links, self.links.teacher, self.links.student
        part = self._text(student, written)[outside:]
        links = Links(vocab.num_labels)
        whole = vocab.teacher_bytes.id_of.get(part)
        if whole is not None and not self._may_end(written, whole):
            whole = None
        base: Node = DROPPED if whole is None else ("base",)
        reaching = self._reaching(written, outside, part)
        reaching.setdefault(covering, own)
        begun = {own, *reaching.values(), *self._first_students(inner, len(part), own)}
        named = set(begun)
        named |= self._read_into(reaching, part).keys()
        left: dict[int, set[int]] = {depth: set() for depth in range(len(inner) + 1)}
        along: dict[int, list[tuple[int, int]]] = {token: [] for token in sorted(named)}
        read = teacher.read([part + student.table.tokens[k] for k in along])
        for (token, places), ids in zip(along.items(), read, strict=True):
            if ids is None:
                continue
            if ids[0] in reaching:
                if (exit_ := exits(links, ("v", token), ids, inner, 0)) is not None:
                    places.append(exit_)
                    left[exit_[0]].add(exit_[1])
            elif ids[0] == whole or token not in begun:
                links.join(("v", token), base)
        for token, behind in reaching.items():
            if not inner or token != inner[0]:
                left[0].add(token)
                links.join(("at", 0, token), ("v", behind))
        if inner:
            path = self._text(teacher, inner)[len(part) :]
            self._along_path(links, lambda k: ("v", k) if k in along else base, own, path, inner, left, along, 1)
        found = self._categories_inside(links, base, whole, own, left, along)
        found.moved.update((token, DROPPED) for token in self._contradicting("teacher", earlier) if token != own)
        return found

    def _may_end(self, written: Ids, whole: int) -> bool:
        """Whether anything that may follow a teacher token leaves the student's cuts as they are; see _survived."""
        text = self._text(self.links.student, written)
        read = self.links.student.read([text + following for following in self._survived(whole)])
        return any(ids is None or tuple(ids[: len(written)]) == written for ids in read)

    def _categories_inside(self, links, base, whole, own, left, along) -> Categories:  # type: ignore[no-untyped-def]
        base_label = links.label(base)
        first = Step(DROPPED, listed(links, 0, left[0], DROPPED))
        if whole is not None:
            first.listed[whole] = base_label
        steps = [first]
        for depth in range(1, len(left)):
            label = links.label(("default", depth))
            steps.append(Step(label, listed(links, depth, left[depth], label)))
        moved = {token: links.label(("v", token)) for token in along}
        moved = {token: label for token, label in moved.items() if label != base_label}
        return Categories(base_label, moved, steps, links.label(("v", own)), links.merged, links.num_own)
