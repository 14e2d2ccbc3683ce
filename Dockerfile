# The tested environment and the toolkit.
#   docker build -t mpn-rl .                                                    PyTorch for the CPU
#   docker build -t mpn-rl --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .      for an NVIDIA GPU
#   docker run --rm -v "$PWD/experiments:/mpn-rl/experiments" mpn-rl train --experiment-name try --total-steps 2000
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /mpn-rl
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 NUMBA_CACHE_DIR=/tmp/numba MPN_RL_PYTHON=/usr/local/bin/python

# PyTorch first and alone, as in the Makefile: its index does not have the tested versions of everything else.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN grep '^torch==' constraints.txt > torch.txt \
 && pip install --no-deps --index-url "$TORCH_INDEX" -r torch.txt \
 && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > needed.txt \
 && pip install -c constraints.txt -r needed.txt "optuna>=5,<6" \
 && rm torch.txt needed.txt

COPY . .
RUN pip install --no-deps -e .

ENTRYPOINT ["python", "/mpn-rl/main.py"]
CMD ["--help"]
