# One process of a job: this source, installed with the extras that its devices need.
#
#     docker build --build-arg EXTRAS=tpu,quickstart --tag REGISTRY/t5x-like:1 .     # TPUs
#     docker build --build-arg EXTRAS=cuda,quickstart --tag REGISTRY/t5x-like:1 .    # NVIDIA GPUs
#
# Run files and files of your own below this folder are in the image, at the paths that they have here. Runs and caches
# are not: they lie on a volume that all processes mount.
FROM python:3.13-slim
ARG EXTRAS=tpu,quickstart
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /t5x_like
# The dependencies first: a change of the source does not install them anew.
COPY pyproject.toml README.md ./
COPY t5x_like/__init__.py t5x_like/
RUN mkdir pallas_kernels configs data launch && touch pallas_kernels/__init__.py && pip install ".[$EXTRAS]"
COPY . .
RUN pip install --no-deps --editable .
