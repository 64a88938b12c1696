"""Small files in the formats of the public benchmarks, with right and wrong answers; written for these tests."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

GSM8K = [
    {"question": "Ann has 3 pens and buys 4. How many has she?", "answer": "She has 3+4=<<3+4=7>>7.\n#### 7"},
    {"question": "A town of 900 gains 600. How many live there?", "answer": "900+600=1500\n#### 1,500"},
    {"question": "It was 2 degrees and fell by 5. What is it?", "answer": "2-5=-3\n#### -3"},
]
MATH500 = [
    {
        "problem": "What is half of $\\frac{1}{3}$?",
        "solution": "It is $\\boxed{\\frac{1}{6}}$.",
        "answer": "\\frac{1}{6}",
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": "test/prealgebra/1.json",
    }
]
MBPP_FULL = [
    {
        "text": "Write a function to double a number.",
        "code": "def double(x):\r\n\treturn 2 * x",
        "task_id": task_id,
        "test_setup_code": "",
        "test_list": ["assert double(2) == 4", "assert double(-1) == -2", "assert set([double(0)]) == set([0])"],
        "challenge_test_list": [],
    }
    for task_id in (5, 11, 510, 520, 700)
]
MBPP_SETUP = {
    "text": "Write a function to find the depth of a chain.",
    "code": "class Link:\r\n    def __init__(self, below=None):\r\n        self.below = below\r\n"
    "def depth(link):\r\n    return 0 if link is None else 1 + depth(link.below)",
    "task_id": 12,
    "test_setup_code": "root = Link()\r\nroot.below = Link()",
    "test_list": ["assert (depth(root)) == 2"],
    "challenge_test_list": [],
}
MBPP_SANITIZED = [
    {
        "source_file": "made for this test",
        "task_id": 14,
        "prompt": "Write a function to take a root.",
        "code": "def root(x):\n    return x ** 0.5",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(root(2), 1.41421356, rel_tol=1e-6)"],
    }
]
HUMANEVAL = [
    {
        "task_id": "Made/0",
        "prompt": "from typing import List\n\ndef helper(xs: List[int]) -> int:\n    return len(xs)\n\n\n"
        'def count(xs: List[int]) -> int:\n    """ Count with helper.\n    >>> count([1])\n    1\n    """\n',
        "entry_point": "count",
        "canonical_solution": "    return helper(xs)\n",
        "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate([]) == 0\n"
        "    assert candidate([1, 2]) == helper([0, 0])\n",
    }
]
LCB_STDIN = {
    "question_id": "made_1",
    "question_content": "Print the sum of all numbers.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "metadata": "{}",
}
LCB_CALL = {
    "question_id": "made_2",
    "question_content": "Return the ends of a list, as often as told.",
    "starter_code": "class Solution:\n    def ends(self, xs: List[int], times: int) -> List[int]:\n        ",
    "public_test_cases": json.dumps([{"input": "[1, 2, 3]\n2", "output": "[1, 3, 1, 3]", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "ends"}),
}
STDIN_RIGHT = "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))\nsys.exit(0)"
STDIN_WRONG = "print(sum(map(int, input().split())))"  # reads the first line only
CALL_RIGHT = "class Solution:\n    def ends(self, xs: List[int], times: int):\n        return (xs[0], xs[-1]) * times"
CALL_WRONG = "class Solution:\n    def ends(self, xs, times):\n        return [xs[0], xs[-1], xs[0], xs[-1]]"


def hidden(tests: list[dict[str, str]]) -> str:
    """Tests as LiveCodeBench packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


LIVECODEBENCH = [
    {**LCB_STDIN, "private_test_cases": hidden([{"input": "1\n2\n3\n", "output": "6", "testtype": "stdin"}])},
    {**LCB_CALL, "private_test_cases": hidden([{"input": "[4]\n1", "output": "[4, 4]", "testtype": "functional"}])},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows, one a line; the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def fenced(code: str) -> str:
    """A response that holds code."""
    return f"Here it is:\n```python\n{code}\n```\nDone."
