# Sampan: build, test, try out, install. `make help` lists the targets.
#
# Always true: every target works from a fresh clone on Debian as root, and does nothing twice.
# Binaries are static; .cargo/config.toml names the target, so they lie under the host triple's folder.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# rustup installs beside the user's home, where root's PATH may not look; nft and ip are in sbin.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin

CARGO ?= cargo
# "release" or "debug": what `make demo` runs and `make install` takes.
PROFILE ?= release

TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
# Empty without a toolchain; `make setup` then says what to do. (= and not :=, so that `make help` asks nobody.)
HOST_TUPLE = $(shell PATH='$(PATH)' rustc --print host-tuple 2>/dev/null)
BIN_DIR = $(TARGET_DIR)/$(HOST_TUPLE)/$(PROFILE)

# Versions of the linters that are known to work with this tree; `cargo install` builds each once.
MACHETE_VERSION := 0.9.2
DENY_VERSION := 0.20.2

# $(call cargo-tool,NAME,VERSION): away from this tree, whose configuration is not meant for it.
cargo-tool = @[[ "$$($(1) --version 2>/dev/null)" == *'$(2)' ]] || \
	(cd / && env -u CARGO_TARGET_DIR $(CARGO) install $(1) --version $(2) --locked)

DESTDIR ?=
PREFIX ?= /usr
BINDIR ?= $(PREFIX)/bin
LIBEXECDIR ?= $(PREFIX)/libexec/sampan
SYSCONFDIR ?= /etc
UNITDIR ?= /usr/lib/systemd/system

.PHONY: help
help: ## lists the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup setup-build
setup: ## installs from Debian what is missing to build, test and demonstrate
	@deploy/setup.sh build test

setup-build:
	@deploy/setup.sh build

.PHONY: build release
build: setup-build ## debug binaries of every package
	$(CARGO) build --workspace

release: setup-build ## release binaries of agent, command line and runtime
	$(CARGO) build --release --bins -p sampan-agent -p sampan-runtime

.PHONY: images
images: setup ## the images of tests and demo, made of Debian packages; those that exist are kept
	tests/images/make-images.sh "$${SAMPAN_TEST_IMAGES:-/var/cache/sampan-test-images}" busybox nginx

.PHONY: test
test: build images ## every test, against the debug binaries and a registry on loopback
	$(CARGO) test --workspace

# Arguments of tests/vm/test.sh: --quick or --agent, and which of v2, hybrid, v1.
VM ?=
.PHONY: test-vm
test-vm: ## the privileged tests in guests with systemd, cgroup v2, hybrid and v1
	@deploy/setup.sh build vm
	tests/vm/test.sh $(VM)

.PHONY: demo
demo: setup ## pulls nginx, runs it, fetches its page, shows its stats, cleans up
	$(MAKE) $(if $(filter debug,$(PROFILE)),build,release)
	BIN_DIR='$(BIN_DIR)' deploy/demo.sh

# Arguments of the benchmark program, such as BENCH="--pods 10 --pulls 0"; --help lists them.
BENCH ?=
.PHONY: bench
bench: ## measures Sampan beside Debian's containerd and runc
	@deploy/setup.sh build test bench
	$(MAKE) release
	$(CARGO) run --release -p sampan-tests --bin sampan-bench -- $(BENCH)

# Each beside its likes: the image store, bare starts of the runtime, builds. BENCH has the program's arguments.
.PHONY: bench-store bench-runtime bench-build
bench-store bench-runtime bench-build: ## images, bare containers, builds, beside containerd, docker, runc, crun, buildah
	@deploy/setup.sh build test bench
	$(MAKE) release
	$(CARGO) run --release -p sampan-tests --bin sampan-$@ -- $(BENCH)

.PHONY: critest
critest: build images ## the CRI validation suite: make critest CRITEST=PROGRAM
	tests/critest/run.sh '$(CRITEST)'

.PHONY: weaken
weaken: setup ## weakens the runtime, one safety measure at a time, and sees its test fail; takes a quarter of an hour
	runtime/tests/weaken.sh

.PHONY: lint
lint: setup ## formatting, warnings, unused dependencies, shell scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy -p sampan-runtime --test systemd -- -D warnings
	$(call cargo-tool,cargo-machete,$(MACHETE_VERSION))
	cargo-machete
	git ls-files "*.sh" .ci/run | xargs shellcheck --severity=warning

# Seconds for each target.
FUZZ ?= 20
FUZZ_VERSION := 0.13.1
FUZZ_TARGETS ?= layer load inflate manifest reference hosts challenge signature dockerfile ignore
.PHONY: fuzz
fuzz: setup-build ## feeds what reads strangers' bytes, FUZZ seconds each; needs a nightly compiler
	$(call cargo-tool,cargo-fuzz,$(FUZZ_VERSION))
	tar -cf imagestore/fuzz/seeds/layer.tar --format=pax -C imagestore/src/layer tests
	mkdir -p imagestore/fuzz/corpus/layer && mv imagestore/fuzz/seeds/layer.tar imagestore/fuzz/corpus/layer/
	cd imagestore && for target in $(FUZZ_TARGETS); do \
		mkdir -p "fuzz/corpus/$$target" "fuzz/seeds/$$target"; \
		cargo +nightly fuzz run --sanitizer none --target '$(HOST_TUPLE)' "$$target" \
			"fuzz/corpus/$$target" "fuzz/seeds/$$target" -- \
			-max_total_time=$(FUZZ) -rss_limit_mb=512 -timeout=10 -print_final_stats=1; \
	done

.PHONY: deny
deny: setup-build ## licences and sources of the dependencies; after a change of Cargo.lock
	$(call cargo-tool,cargo-deny,$(DENY_VERSION))
	cargo-deny check licenses bans sources

.PHONY: install
install: ## binaries, units and configuration below DESTDIR (build them first: make release)
	install -D -m 0755 -t '$(DESTDIR)$(BINDIR)' '$(BIN_DIR)/sampand' '$(BIN_DIR)/sampan'
	install -D -m 0755 -t '$(DESTDIR)$(LIBEXECDIR)' '$(BIN_DIR)/sampan-runtime'
	install -d -m 0755 '$(DESTDIR)$(UNITDIR)'
	for unit in sampand.service sampand.socket; do \
		sed 's|/usr/bin/|$(BINDIR)/|' "deploy/$$unit" > '$(DESTDIR)$(UNITDIR)/'"$$unit"; \
		chmod 0644 '$(DESTDIR)$(UNITDIR)/'"$$unit"; \
	done
	install -d -m 0755 '$(DESTDIR)$(SYSCONFDIR)/sampan'
	test -e '$(DESTDIR)$(SYSCONFDIR)/sampan/config.toml' || \
		sed 's|^# path = .*|path = "$(LIBEXECDIR)/sampan-runtime"|' deploy/config.toml > '$(DESTDIR)$(SYSCONFDIR)/sampan/config.toml'
	install -D -m 0644 -t '$(DESTDIR)$(PREFIX)/share/doc/sampan' README.md CHANGELOG.md deploy/crictl.yaml

.PHONY: clean
clean: ## removes what cargo and the image scripts made
	$(CARGO) clean
	rm -rf tests/.fixtures
