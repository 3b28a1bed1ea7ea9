"""A report of what a tokenizer loses of a data set, before training, with what to do.

    print(lint(task, records, tokenizer))

T5's vocabulary has neither a line break nor a brace, so code, JSON and lists reach the model without them. Characters that
it does not know become one unknown piece, which a model can neither tell apart nor write.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from t5peft.data import checks
from t5peft.data.checks import Findings
from t5peft.data.decoding import decode, letters_of
from t5peft.data.leaks import SAMPLE, leak_of
from t5peft.data.sources import batches_of
from t5peft.data.task import Record, Task
from t5peft.data.template import Template, as_text
from t5peft.data.truncation import Truncated, encode, special_ids, truncate

SHOWN_CHARACTERS = 12


@dataclass(frozen=True)
class Side:
    """Sources or targets as the tokenizer takes them.

    Args:
        name: ``"sources"`` or ``"targets"``.
        rows: Their number.
        tokens: Tokens of all rows, before truncation, with ``</s>``.
        unknown_tokens: Tokens that are the unknown piece.
        unknown_rows: Rows with at least one.
        lost: Each character that becomes the unknown piece, and the number of rows that have it.
        changed: Each character, or two spaces, that becomes other text, that text, and the number of rows.
        special_rows: Rows whose text spells a special token such as ``</s>``.
        lengths: Tokens of each row, sorted.
        limit: Tokens that are kept.
    """

    name: str
    rows: int
    tokens: int
    unknown_tokens: int
    unknown_rows: int
    lost: dict[str, int]
    changed: dict[str, tuple[str, int]]
    special_rows: int
    lengths: Sequence[int]
    limit: int

    @property
    def cut_rows(self) -> int:
        """Rows longer than the limit."""
        return sum(length > self.limit for length in self.lengths)

    def length_of(self, share: float) -> int:
        """Return the tokens that this share of the rows does not exceed."""
        return self.lengths[max(0, min(len(self.lengths) - 1, round(share * len(self.lengths)) - 1))]


@dataclass(frozen=True)
class LintReport:
    """The findings of ``lint``. ``str(report)`` is readable text.

    Args:
        task: The name of the task.
        sources: The findings in sources.
        targets: The findings in targets.
        unwritable: Rows whose target the tokenizer cannot reproduce, so no answer can equal it.
        problems: The problems that ``Task.encode`` would raise.
        advice: Recommendations, the most important first; empty if nothing is lost.
    """

    task: str
    sources: Side
    targets: Side
    unwritable: int
    problems: tuple[str, ...]
    advice: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"tokenizer lint of task {self.task!r}", *_lines_of(self.sources), *_lines_of(self.targets)]
        if self.unwritable:
            lines.append(f"  {_share(self.unwritable, self.targets.rows)} of targets cannot be written exactly")
        lines += [f"error: {problem}" for problem in self.problems]
        lines += [f"do: {advice}" for advice in self.advice]
        return "\n".join(lines if self.problems or self.advice else [*lines, "nothing is lost"])


def lint(task: Task, records: Iterable[Record], tokenizer: PreTrainedTokenizerBase) -> LintReport:
    """Report what the tokenizer does to the records. Nothing is changed, and problems are reported instead of raised.

    Raises:
        ValueError: Columns are missing or have no text, so nothing can be reported.
    """
    template, target = Template.parse(task.template), Template.parse(task.target)
    words = task.verbalizer or {}
    sources = _Counts("sources", template, task.max_source_length)
    targets = _Counts("targets", target, task.max_target_length)
    missing, unknown, unwritable = (Findings(), Findings()), Findings(), 0
    read: list[Record] = []  # of an iterator, which is read once
    for batch in batches_of(records):
        if isinstance(records, Iterator) and len(read) < SAMPLE:
            read += batch
        named = task.with_names(batch)
        for found, one in zip(missing, (template, target), strict=True):
            found.add(checks.missing_columns(named, one, task.list_separator), sources.rows)
        if any(missing):
            sources.rows += len(named)
            continue
        rows, target_rows = (
            [{column: as_text(record[column], task.list_separator) or "" for column in one.columns} for record in named]
            for one in (template, target)
        )
        target_rows = [{column: words.get(text, text) for column, text in row.items()} for row in target_rows]
        if words:
            unknown.add(checks.unknown_labels(named, target.columns[0], task.labels), sources.rows)
        sources.add(rows, tokenizer)
        unwritable += _unwritable(targets.add(target_rows, tokenizer).texts, tokenizer)
    if not sources.rows:
        missing[0].add(checks.missing_columns([], template))
    checks.raise_all(task.name, [problem for found in missing for problem in found], records)
    problems = (*unknown, *task.collisions(tokenizer), *sources.unusable, *targets.unusable)
    sides = sources.side(tokenizer), targets.side(tokenizer)
    advice = [line for side in sides for line in _advice(side)]
    if unwritable:
        advice.insert(0, _advice_on_unwritable(unwritable, sides[1], classes=bool(words)))
    if leak := leak_of(task, read or records):
        advice.insert(0, leak)
    return LintReport(task.name, *sides, unwritable, problems, tuple(advice))


class _Counts:
    """Counts of one side, batch by batch."""

    def __init__(self, name: str, template: Template, limit: int) -> None:
        self.name, self.template, self.limit = name, template, limit
        self.rows = self.unknown_tokens = self.unknown_rows = self.special_rows = 0
        self.lengths: Counter[int] = Counter()
        self.seen: Counter[str] = Counter()
        self.unusable = Findings()

    def add(self, rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> Truncated:
        truncated = truncate(self.template, rows, tokenizer, self.limit, first_row=self.rows)
        texts = [self.template.render(row) for row in rows]
        encoded, changed = list(truncated.ids), sorted({*truncated.cut, *truncated.escaped})
        for row, ids in zip(changed, encode([texts[row] for row in changed], tokenizer), strict=True):
            encoded[row] = ids
        unknown = [ids.count(tokenizer.unk_token_id) for ids in encoded]
        self.unusable.add(checks.unusable(truncated, self.template, self.name[:-1], self.limit), self.rows)
        self.rows += len(texts)
        self.unknown_tokens += sum(unknown)
        self.unknown_rows += sum(map(bool, unknown))
        self.special_rows += len(truncated.escaped)
        self.lengths.update(map(len, encoded))
        self.seen.update(character for text in texts for character in {*text, *(["  "] if "  " in text else [])})
        return truncated

    def side(self, tokenizer: PreTrainedTokenizerBase) -> Side:
        fates = {character: fate_of(character, tokenizer) for character in self.seen}
        common = self.seen.most_common()
        return Side(
            name=self.name,
            rows=self.rows,
            tokens=sum(length * count for length, count in self.lengths.items()),
            unknown_tokens=self.unknown_tokens,
            unknown_rows=self.unknown_rows,
            lost={character: count for character, count in common if fates[character] is None},
            changed={
                character: (fate, count)
                for character, count in common
                if (fate := fates[character]) is not None and fate != character
            },
            special_rows=self.special_rows,
            lengths=array("I", sorted(self.lengths.elements())),
            limit=self.limit,
        )


def fate_of(character: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the text that a tokenizer gives back for a character within a word; ``None`` for the unknown piece."""
    # digits around it: no accent combines with them, and no tokenizer strips them
    ids = tokenizer(f"1{character}1", add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in ids:
        return None
    text = decode([ids], tokenizer)[0]
    return text[text.index("1") + 1 : text.rindex("1")]


def _unwritable(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of texts that the tokenizer does not give back, white space aside."""
    special = special_ids(tokenizer)
    distinct = Counter(texts)
    lost = 0
    for (text, count), ids in zip(distinct.items(), encode(list(distinct), tokenizer), strict=True):
        back = decode([ids], tokenizer)[0]
        if letters_of(back) != letters_of(text) and not special & set(ids[:-1]):
            lost += count
    return lost


def _lines_of(side: Side) -> list[str]:
    lines = [
        f"{side.name}: {side.rows}, {side.tokens / side.rows:.1f} tokens on average, 95 % up to "
        f"{side.length_of(0.95)}, longest {side.lengths[-1]}; limit {side.limit}: {_share(side.cut_rows, side.rows)} cut"
    ]
    if side.unknown_tokens:
        lines.append(
            f"  unknown pieces: {100 * side.unknown_tokens / side.tokens:.2f} % of tokens, in "
            f"{_share(side.unknown_rows, side.rows)}: {_characters(side.lost)}"
        )
    if side.changed:
        lines.append(f"  changed characters: {_characters(side.changed)}")
    if side.special_rows:
        lines.append(f"  special tokens spelled out: in {_share(side.special_rows, side.rows)}")
    return lines


def _advice(side: Side) -> list[str]:
    advice = []
    column = side.name[:-1]  # "source" or "target"
    if side.lost:
        advice.append(
            f"{side.name}: replace {_names(side.lost)} with text that the tokenizer knows, or add them as tokens "
            "(t5peft.models.tokens.add_tokens); ByT5 can encode every character"
        )
    breaks = [character for character, (fate, _) in side.changed.items() if not fate.strip() and character != " "]
    if breaks:
        advice.append(
            f"{side.name}: {_names(breaks)} reach the model as a space or not at all; if they carry meaning, replace them "
            "with a word or a mark such as ' | ', add a token, or use a tokenizer that keeps them, such as that of ByT5"
        )
    if side.special_rows:
        advice.append(
            f"{side.name}: special tokens in the text are broken up (</s> becomes < /s>) so that they do not end it; if "
            "they are left over from an earlier tokenization, remove them"
        )
    if side.cut_rows:
        advice.append(
            f"{side.name}: max_{column}_length={side.lengths[-1]} would keep all of every row, "
            f"{side.length_of(0.95)} that of 95 %; with less the ends of the longest columns are cut"
        )
    return advice


def _advice_on_unwritable(rows: int, targets: Side, *, classes: bool) -> str:
    share = _share(rows, targets.rows)
    if classes:
        return f"targets: the words of {share} hold characters that the tokenizer loses; choose other words (--target-word)"
    return f"targets: no answer can equal {share} of them exactly; exact match is at most {1 - rows / targets.rows:.3f}"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)"


def _characters(found: dict[str, Any]) -> str:
    shown = []
    for character, value in list(found.items())[:SHOWN_CHARACTERS]:
        becomes, rows = value if isinstance(value, tuple) else (None, value)
        shown.append(f"{character!a}{'' if becomes is None else f' -> {becomes!a}'} in {rows}")
    more = f" and {len(found) - SHOWN_CHARACTERS} more" if len(found) > SHOWN_CHARACTERS else ""
    return ", ".join(shown) + more


def _names(characters: Iterable[str]) -> str:
    names = [repr(character) for character in characters]
    return ", ".join(names[:SHOWN_CHARACTERS]) + (" and others" if len(names) > SHOWN_CHARACTERS else "")
