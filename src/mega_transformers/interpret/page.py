"""The frame of a report: a page without scripts or outside references, light and dark, for screens and phones."""

from string import Template

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title: what it has learnt</title>
<style>
:root { --page: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --card: #f6f8fa; --link: #0860ca; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1318; --ink: #e2e7ed; --soft: #98a2ae; --line: #343c46; --card: #181e26; --link: #6cb0f5; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.page { max-width: 75rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); font-size: 1.4rem; }
h3 { margin: 2rem 0 .5rem; font-size: 1.1rem; }
p { margin: .75rem 0; max-width: 46rem; }
.how { padding-left: .9rem; border-left: 3px solid var(--line); }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
.kind { margin: .25rem 0 1.5rem; color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .75rem; margin: 0; }
dl div { padding: .6rem .8rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-weight: 600; font-size: .95rem; line-height: 1.35; }
nav { margin: 1.5rem 0 0; }
nav ul { margin: 0; padding: 0; list-style: none; }
nav li { padding: .2rem 0; }
figure { margin: 1.25rem 0; }
figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; }
figure svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .875rem; line-height: 1.35; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: bottom; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { padding-left: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th.number { min-width: 5rem; }
td { white-space: nowrap; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--link); }
pre { margin: .5rem 0; padding: .75rem 1rem; max-height: 20rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .85rem; }
@media (min-width: 70rem) {
  .page { display: grid; grid-template-columns: 13rem minmax(0, 1fr); column-gap: 3rem; }
  header, main, footer { grid-column: 2; }
  nav { grid-column: 1; grid-row: 1 / span 2; position: sticky; top: 1.5rem; align-self: start; font-size: .9rem; }
}
@media print {
  nav { display: none; }
  .page { display: block; padding: 0; }
  figure, table { break-inside: avoid; }
}
</style>
</head>
<body>
<div class="page">
<header>
<h1>$title</h1>
<p class="kind">$kind</p>
<dl>$highlights</dl>
</header>
<nav aria-label="Contents"><ul>$contents</ul></nav>
<main>$sections</main>
<footer>$made</footer>
</div>
</body>
</html>
""")
