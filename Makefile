# `make demo`, `make demo-video` and `make test` set everything up that they need. See README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := "packages/mfm_core[slurm]" packages/mfm_image packages/mfm_video
SETTINGS := $(wildcard packages/*/pyproject.toml) constraints.txt

.PHONY: help setup demo demo-video test test-packages lint clean

help:
	@echo "make demo           make the demo data, pre-train, fine-tune, write the report (about 5 minutes on 2 cores)"
	@echo "make demo-video     the same with clips: MaskFeat on a small MViTv2, a test by several views (6 to 7 minutes of one core)"
	@echo "make test           all tests"
	@echo "make test-packages  installs core + image, and core + video, alone in environments of their own and runs their tests there"
	@echo "make lint           ruff"
	@echo "make setup          only make $(VENV)"

setup: $(VENV)/ready

$(VENV)/ready: $(SETTINGS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || (echo "Python 3.10 or newer is needed; set PYTHON=python3.x" && false)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(addprefix -e ,$(PACKAGES)) pytest pytest-xdist ruff
	@touch $@

demo: setup
	$(BIN)/python tools/make_demo_data.py --out data/demo
	$(BIN)/python tools/run_net.py --cfg configs/demo/pretrain.yaml
	$(BIN)/python tools/run_net.py --cfg configs/demo/finetune.yaml TRAIN.CHECKPOINT_FILE_PATH runs/demo/pretrain/checkpoints/checkpoint_epoch_00020.pyth
	$(BIN)/python tools/run_net.py --cfg configs/demo/finetune.yaml OUTPUT_DIR runs/demo/scratch SOLVER.LAYER_DECAY 1.0
	$(BIN)/python tools/report.py runs/demo/pretrain runs/demo/finetune runs/demo/scratch --out runs/demo/report.html
	@echo "Open runs/demo/report.html"

demo-video: setup
	$(BIN)/python tools/make_demo_videos.py --out data/demo_video
	$(BIN)/python tools/run_net.py --cfg configs/demo_video/pretrain.yaml
	$(BIN)/python tools/run_net.py --cfg configs/demo_video/finetune.yaml TRAIN.CHECKPOINT_FILE_PATH runs/demo_video/pretrain/checkpoints/checkpoint_epoch_00020.pyth
	$(BIN)/python tools/run_net.py --cfg configs/demo_video/finetune.yaml OUTPUT_DIR runs/demo_video/scratch SOLVER.LAYER_DECAY 1.0
	$(BIN)/python tools/report.py runs/demo_video/pretrain runs/demo_video/finetune runs/demo_video/scratch --out runs/demo_video/report.html
	@echo "Open runs/demo_video/report.html"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

# Environments with core and one modality alone: nothing else that was installed beside them. They see the large torch
# wheels of the first through links, to save their download.
test-packages: setup
	$(PYTHON) tools/test_packages.py --torch-from $(BIN)/python

lint: setup
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) .venv-image .venv-video runs data/demo data/demo_video packages/*/build packages/*/src/*.egg-info
