"""The executed course as a static web site: `mechlab site`.

Reads the stored notebooks, README.md and docs/; runs no model and imports no torch. The pages work from a
plain file server and from a folder (file://), ask nobody for anything, and say in words what each figure
shows.

build.py     puts the site together          commands.py  the command
notebook.py  one notebook as one page        outputs.py   what its cells put out
prose.py     markdown and code to HTML       search.py    the index of words
slides.py    slides for a talk, and slides.html, which turns them: `mechlab slides`
cite.py      how to cite the course          check.py     links, ids, sizes, alternative texts
turning.py   groups of neurons to turn, and turning.js, which moves among stored steps
page.html, site.css, site.js, icon.svg       what all pages share
social.png   what is seen where a link is passed on; docs/make_picture.py makes it
"""
