# What kernels of `mechlab lab` run before the first cell; it leaves no name behind.
# Another Python, such as in a terminal of JupyterLab, has no course to import.
with __import__("contextlib").suppress(ImportError):
    __import__("mechlab_course.restarted").restarted.watch()
