# The course in a container, with the model inside: `docker build -t mechlab . && docker run -p 8888:8888 mechlab`.
# The same file serves Binder and .devcontainer/. With 2 GB of memory notebooks 00 to 03, 11, 12 and 21 ran to their
# end; the others want up to 4.
FROM python:3.11-slim

RUN pip install --no-cache-dir uv && useradd --create-home --uid 1000 jovyan
COPY pyproject.toml constraints.txt README.md LICENSE /tmp/mechlab/
COPY mechlab /tmp/mechlab/mechlab
COPY mechlab_course /tmp/mechlab/mechlab_course
COPY notebooks /tmp/mechlab/notebooks
COPY course /tmp/mechlab/course
COPY docs /tmp/mechlab/docs
COPY data /tmp/mechlab/data
# The CPU build of torch: a tenth of the size of the CUDA one.
RUN uv pip install --system --no-cache --torch-backend cpu -c /tmp/mechlab/constraints.txt "/tmp/mechlab[lab]" \
    && rm -r /tmp/mechlab

# What `mechlab lab` sets, for whatever starts JupyterLab here: Binder gives its own command.
RUN mkdir -p /usr/local/share/jupyter/lab/settings && cp \
    "$(python3 -c 'import mechlab_course; print(mechlab_course.__path__[0])')/lab_settings/overrides.json" \
    /usr/local/share/jupyter/lab/settings/
ENV OMP_WAIT_POLICY=PASSIVE MALLOC_TRIM_THRESHOLD_=131072

USER jovyan
ENV HOME=/home/jovyan MECHLAB_CACHE=/home/jovyan/.cache/mechlab
WORKDIR /home/jovyan
# With the weights of notebook 02, so that nobody waits; the file they are made of is not needed again.
RUN mechlab pull --raw && rm "$MECHLAB_CACHE/smollm2/model.gguf" && mechlab update

EXPOSE 8888
CMD ["mechlab", "lab", "--no-browser", "--ip", "0.0.0.0"]
