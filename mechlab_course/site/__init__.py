"""The executed course as a static web site: `mechlab site`.

Reads the stored notebooks, README.md and docs/; runs no model and imports no torch. The pages work from a plain file
server and from a folder (file://), ask nobody for anything, and say in words what each figure shows.
"""
