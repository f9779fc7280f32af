# What a developer does daily. `make help` lists the targets.
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)

# Debian's own packages: LLVM and MLIR 22, what tblgen links statically, libclang for bindgen, valgrind for the
# instruction-count guard, qemu for the tests on aarch64.
PACKAGES := llvm-22-dev libmlir-22-dev libpolly-22-dev libzstd-dev zlib1g-dev libclang1-22 libclang-common-22-dev \
            g++ valgrind qemu-user ca-certificates curl
RUST_VERSION := 1.95
AARCH64 := aarch64-unknown-linux-musl
AARCH64_STD = $(shell rustc --print sysroot)/lib/rustlib/$(AARCH64)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help setup build lint test bless demo bench

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: ## Install what is missing on a bare Debian 12 (as root or with sudo); nothing to do when all is there
	@missing=; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q '^install ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing; fi
	@if ! command -v cargo >/dev/null; then \
	  echo "installing Rust with rustup"; \
	  curl -fsS https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt,clippy; fi
	@cargo --version | awk -v need=$(RUST_VERSION) '{ split($$2, have, "."); split(need, want, "."); \
	  if (have[1] * 1000 + have[2] < want[1] * 1000 + want[2]) { print "Rust " need " or newer is needed: rustup update" > "/dev/stderr"; exit 1 } }'
	@[ -d "$(AARCH64_STD)" ] || rustup target add $(AARCH64) \
	  || echo "there is no Rust for $(AARCH64): no example is run whole on aarch64"

build: setup ## The optimised rdc, in target/release
	cargo build --release

lint: setup ## Formatting and clippy, of the whole workspace and of the runtime-only build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p rdc --no-default-features --bins -- -D warnings

# The runtime-only rdc is built first and set aside, since both builds write the same file.
test: setup ## All tests
	cargo build -p rdc --no-default-features
	cp $(TARGET_DIR)/debug/rdc $(TARGET_DIR)/debug/rdc-runtime-only
	@! cargo tree -p rdc --no-default-features -e normal,build --prefix none | grep -E '^(llvm-sys|mlir-sys|melior|inkwell|egg) ' \
	  || { echo "the runtime-only build depends on the compiler" >&2; exit 1; }
	@! ldd $(TARGET_DIR)/debug/rdc-runtime-only | grep -E 'LLVM|MLIR' \
	  || { echo "the runtime-only build links LLVM or MLIR" >&2; exit 1; }
	[ ! -d "$(AARCH64_STD)" ] || cargo build -p rdc --no-default-features --target $(AARCH64)
	RDC_RUNTIME_ONLY=$(abspath $(TARGET_DIR))/debug/rdc-runtime-only \
	RDC_AARCH64=$(if $(wildcard $(AARCH64_STD)),$(abspath $(TARGET_DIR))/$(AARCH64)/debug/rdc) \
	  cargo test --workspace --no-fail-fast
	RDC_TEST_TARGET=aarch64 cargo test -p rdc-backend-cpu --lib -- --skip every_target --skip refused

bless: setup ## Accept changed snapshots; read the diff
	BLESS=1 INSTA_UPDATE=always INSTA_FORCE_PASS=1 cargo test --workspace

demo: setup ## Train a small model from scratch (1 to 4 minutes) and watch accuracy rise with the number of iterations
	cargo build --release --bins
	rm -rf $(TARGET_DIR)/demo
	$(TARGET_DIR)/release/rdc train examples/huginn.rdm --config examples/parity/train.toml --out $(TARGET_DIR)/demo
	$(TARGET_DIR)/release/rdc eval examples/huginn.rdm --hf $(TARGET_DIR)/demo/step-001000 --task parity --size 24,28,32 \
	  --steps 1,2,4,8,16,32 --rows 512 --svg $(TARGET_DIR)/demo/accuracy.svg
	@echo "curves: $(TARGET_DIR)/demo/accuracy.svg and loss.svg"

bench: build ## Speed as ratios to ceilings measured in the same run
	$(TARGET_DIR)/release/rdc bench
