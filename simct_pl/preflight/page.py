"""A preflight as one HTML page that needs nothing beside it, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from jinja2 import Environment

from simct_pl.preflight.report import Preflight

PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Preflight: {{ name }}</title><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.05em; margin: 0 0 .4em }
main { columns: 27em 2; column-gap: 2.4em }
section { break-inside: avoid; margin-bottom: 1.6em } section.wide { column-span: all }
table { border-collapse: collapse; width: 100% } th, td { padding: .2em .7em; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #999; font-weight: 600 } td { border-bottom: 1px solid #ddd; overflow-wrap: anywhere }
td:first-child { color: #555; overflow-wrap: normal }
pre { background: #f6f6f6; padding: .8em; white-space: pre-wrap; margin: 0 }
.note { color: #666; font-size: .88em; margin: .4em 0 0 }
.verdict { border-left: .5em solid; padding: .5em 1em; margin: 1em 0 2em }
.GO { border-color: #2e7d32; background: #edf7ee } .CARE { border-color: #e0a100; background: #fff8e1 }
.STOP { border-color: #c62828; background: #fdecea } .verdict b { font-size: 1.25em }
</style></head><body>
<h1>Preflight: {{ name }}</h1>
<div class="verdict {{ verdict.name }}"><b>{{ verdict.words }}</b><ul>
{% for reason in reasons %}<li>{{ reason }}</li>
{% endfor %}</ul></div>
<main>
{% for section in sections %}
<section{% if section.headers | length > 3 %} class="wide"{% endif %}><h2>{{ section.title }}</h2>
{% if section.rows %}<table><tr>{% for header in section.headers %}<th>{{ header }}</th>{% endfor %}</tr>
{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endif %}
{% if section.text %}<pre>{{ section.text }}</pre>
{% endif %}
{% if section.note %}<p class="note">{{ section.note }}</p>
{% endif %}
</section>
{% endfor %}
</main></body></html>
""")


def html(preflight: Preflight) -> str:
    return PAGE.render(
        name=preflight.name,
        verdict=preflight.verdict,
        reasons=preflight.reasons,
        sections=preflight.sections,
    )


def as_json(preflight: Preflight) -> str:
    """The same for a program: the verdict, every section as it is shown, and figures."""
    return json.dumps(
        {
            "name": preflight.name,
            "verdict": preflight.verdict.words,
            "reasons": preflight.reasons,
            "sections": [asdict(section) for section in preflight.sections],
            **preflight.figures,
        },
        ensure_ascii=False,
        indent=1,
    )
