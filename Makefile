# `make help` lists the targets. Everything happens in .venv, made on first use.
PYTHON ?= python3
PORT ?= 3000
# How many test processes run side by side: a number, or logical for one per core.
WORKERS ?= logical
# Tests that export files or train whole runs, which test-fast leaves to test.
SLOW := e2e deploy examples export scripts training/stages training/rendered training/test_running.py \
	protoserve/networks/test_backbones.py protoserve/networks/test_tiles.py protoserve/audit/test_locality.py
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo demo-bundle docs serve check format test test-fast test-install test-faults container test-container bench-head bench-service bench-audit bench-gpu clean distclean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do printf '  %-20s%s\n' "$$target" "$$text"; done

install: $(INSTALLED) ## Make the environment in .venv, with the versions of constraints.txt

# Made anew only where the requirements changed; an interrupted install leaves no stamp and is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "error: there is no '$(PYTHON)'; install Python 3.11, 3.12 or 3.13, or name it: make install PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); ProtoServe needs Python 3.11, 3.12 or 3.13: make install PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: '$(PYTHON)' can't make environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off --constraint constraints.txt --editable '.[train,export,serve,client,score,feedback,targets,timm,tracing,dev]'
	@touch $@

demo: install ## Draw pictures, train, export, validate, explain, audit, serve, ask over HTTP
	@scripts/demo.sh

demo-bundle: install ## Make protoserve/demo, the bundle that comes with the package, from what `make demo` trained
	@scripts/package_demo.sh

docs: install ## Build the documentation site into site/, with every link checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

serve: install ## Serve the demo's bundle until Ctrl-C (PORT=3000)
	@PORT=$(PORT) scripts/demo.sh serve

check: install ## Lint, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

format: install ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each worker computes with one thread, since the workers already use every core.
test: install ## All tests, side by side (WORKERS=logical)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10

test-fast: install ## Most of the safety in under two minutes: no exports, no whole runs, none end to end
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10 -m "not slow" $(addprefix --ignore tests/,$(SLOW))

bench-head: install ## What an explanation costs: time over a plain classifier's, and scale
	$(BIN)/python -m benchmarks.head.cost
	$(BIN)/python -m benchmarks.head.scale

test-install: install ## The wheel into an empty environment, with the packages that serving needs (downloads them)
	PROTOSERVE_TEST_INSTALL=1 $(BIN)/python -m pytest tests/e2e/test_wheel.py --timeout 1200

test-faults: install ## Hostile uploads (10,000; 200 in 1 GiB on one core), kills, full disks, slow and vanishing clients, scrapes, proxies, Ray, docs/mend.md, and other long tests
	PROTOSERVE_HOSTILE_UPLOADS=10000 $(BIN)/python -m pytest tests/service/test_hostile.py --timeout 3000
	PROTOSERVE_TEST_FAULTS=1 PROTOSERVE_TEST_RAY=1 $(BIN)/python -m pytest tests/e2e/test_faults.py tests/e2e/test_resume.py tests/e2e/test_hostile_load.py tests/e2e/test_serve_command.py tests/e2e/test_service_page.py tests/e2e/test_page_use.py tests/e2e/test_photographs_page.py tests/e2e/test_timm_path.py tests/e2e/test_locality.py tests/training/features/test_precision.py tests/e2e/test_contract.py tests/e2e/test_mend_tutorial.py tests/protoserve/scoring/test_ray.py tests/protoserve/test_telemetry.py
	PROTOSERVE_TEST_FAULTS=1 $(BIN)/python -m pytest tests/export/test_curating.py tests/training/extending/test_extending.py -k "killed or every_runtime" --timeout 1200

container: install ## An image that serves BUNDLE= (VARIANT=cpu or gpu, BACKEND=docker, podman or buildah)
	@scripts/container.sh "$(BUNDLE)" $(or $(VARIANT),cpu) $(or $(BACKEND),docker)

# vfs and chroot work wherever root does, also inside a container; a registry of images is only needed for BASE_IMAGE=.
test-container: export STORAGE_DRIVER ?= vfs
test-container: export BUILDAH_ISOLATION ?= chroot
test-container: install ## Build the CPU image with buildah, run it read-only with crun, ask it (root; BASE_IMAGE= or debootstrap)
	$(if $(BASE_IMAGE),,@buildah inspect --type image localhost/protoserve-base >/dev/null 2>&1 || scripts/container_base.sh localhost/protoserve-base)
	PROTOSERVE_TEST_BASE=$(or $(BASE_IMAGE),localhost/protoserve-base) $(BIN)/python -m pytest tests/deploy -rA --timeout 3000

bench-service: install ## Throughput and latency of the service beside others (BUNDLE=, DATA= folder of photographs)
	$(BIN)/python -m benchmarks.service.throughput $(BUNDLE) $(DATA)

bench-audit: install ## Our evidence beside Grad-CAM, LayerCAM, IG, LIME, KernelSHAP (SETS='NAME=BUNDLE=LINEAR_RUN=DATA …')
	@$(BIN)/python -c 'import captum' 2>/dev/null || $(BIN)/python -m pip install --progress-bar off --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.accuracy.rivals $(SETS)

bench-gpu: install ## What a GPU changes: training and answers in time, and whether the evidence agrees (BUNDLE=, DATA=)
	$(BIN)/python -m benchmarks.gpu $(BUNDLE) $(DATA)

clean: ## Remove the demo and the tools' caches
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage htmlcov
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Remove the environment, too
	rm -rf $(VENV) *.egg-info
