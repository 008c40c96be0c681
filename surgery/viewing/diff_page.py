"""The differences between two models as one web page that needs nothing else."""

from __future__ import annotations

from html import escape
from typing import Any

from surgery.viewing.diff import in_short, in_words

__all__ = ["page"]

_STYLE = """
:root { --paper: #fff; --ink: #1b1f24; --faint: #6a737d; --line: #dfe3e8; --added: #1a7f37; --added-paper: #e9f7ed;
  --removed: #b3261e; --removed-paper: #fceceb; --changed: #8a5a00; --changed-paper: #fff6e0; --bar: #4a78c9; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e4e7eb; --faint: #98a2ad; --line: #333a42;
  --added: #6fd08c; --added-paper: #16281c; --removed: #ff9a92; --removed-paper: #331b1a; --changed: #f0c063;
  --changed-paper: #2e2613; --bar: #7ea6ee; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
.counts { color: var(--faint); margin: 0 0 1rem; }
.layer { border: 1px solid var(--line); border-left: 4px solid var(--line); border-radius: 6px; margin: .35rem 0;
  padding: .4rem .8rem; overflow-wrap: anywhere; }
.layer b { font-family: ui-monospace, monospace; } .layer .about { color: var(--faint); margin-left: .6rem; }
.layer ul { margin: .2rem 0 .1rem; padding-left: 1.2rem; }
.added { border-left-color: var(--added); background: var(--added-paper); } .added b { color: var(--added); }
.removed { border-left-color: var(--removed); background: var(--removed-paper); }
.removed b { color: var(--removed); text-decoration: line-through; }
.changed { border-left-color: var(--changed); background: var(--changed-paper); } .changed b { color: var(--changed); }
.bar { display: inline-block; width: 6rem; height: .55rem; border-radius: 3px; background: var(--line);
  margin-left: .6rem; vertical-align: middle; } .bar i { display: block; height: 100%; border-radius: 3px;
  background: var(--bar); }
details { margin: .35rem 0; } summary { color: var(--faint); cursor: pointer; }
"""


def page(found: dict[str, Any], old: str, new: str) -> str:
    """Returns an HTML page.

    Args:
        found: What `surgery.viewing.diff.diff` found.
        old: The old model's name.
        new: The new model's name.
    """
    title = f"{old} → {new}"
    verdict = "The models are the same." if found["same"] else f"Layers: {in_short(found['counts'])}."
    body = [f"<h1>{escape(title)}</h1>", f'<p class="counts">{escape(verdict)}</p>']
    if found["model"]:
        body += ["<h2>The model</h2>", '<div class="layer changed">', _list(found["model"]), "</div>"]
    body.append("<h2>Its layers</h2>")
    same: list[str] = []
    for item in found["layers"]:
        if item["kind"] == "same":
            same.append(_layer(item))
            continue
        body += [_folded(same), _layer(item)]
        same = []
    body.append(_folded(same))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n{''.join(filter(None, body))}\n</body></html>\n"
    )


def _folded(layers: list[str]) -> str:
    return f"<details><summary>{len(layers)} the same</summary>{''.join(layers)}</details>\n" if layers else ""


def _layer(item: dict[str, Any]) -> str:
    parameters = [f"{role} {shape}" for role, shape in item["parameters"].items()]
    about = ", ".join([f"{item['operator']} {item['output_shape']}", *parameters])
    head = f'<b>{escape(item["name"])}</b><span class="about">{escape(about)}</span>'
    return f'<div class="layer {item["kind"]}">{head}{_list(item["changes"])}</div>\n'


def _list(changes: list[dict[str, Any]]) -> str:
    if not changes:
        return ""
    return f"<ul>{''.join(f'<li>{escape(in_words(c))}{_bar(c)}</li>' for c in changes)}</ul>"


def _bar(change: dict[str, Any]) -> str:
    """How much of a weight changed, as a bar that is full at its norm."""
    if "relative" not in change:
        return ""
    width = min(1.0, change["relative"]) * 100
    return f'<span class="bar" title="part of the norm"><i style="width:{width:.1f}%"></i></span>'
