# SPDX-License-Identifier: GPL-2.0-or-later
#
#   make              build everything into build/
#   sudo make demo    two hosts, a protected guest, a failover: build/demo.json
#   sudo make check   all tests
#   make bench        measurements: build/bench.json; make bench B=ring_spsc: one of them
#   make plots        pictures of them: docs/bench-*.svg
#   sudo make soak KILLS=1000   every process killed again and again, at every fault point
#   make fuzz         libFuzzer on every fuzz-*.c, FUZZ_SECONDS=60 each, FUZZ=NAME... for some
#   sudo make check-systemd   the packages on a Debian with systemd, in a virtual machine
#   sudo make check-libvirt   a domain of two real libvirt daemons
#   make lint         clang-format, cppcheck, shellcheck
#
# B is the build directory; SAN=address,undefined (sanitizers) and FAULTS=1 (fault points) build
# into their own.

SHELL := /bin/bash
SAN ?=
# `make bench B=NAME` names a measurement, not a directory.
ifeq ($(MAKECMDGOALS),bench)
BENCH := $(filter-out build,$(B))
override B := build
endif
B ?= build$(if $(SAN),-san)$(if $(FAULTS),-faults)
CC := gcc
WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith
CFLAGS ?= $(if $(SAN),-O1,-O2) -g
JOBS ?= $(shell nproc)
PKGS := libsystemd jansson libzstd libxxhash libseccomp gnutls libnl-3.0 libnl-route-3.0

ifeq ($(filter-out lint-deps deps clean,$(or $(MAKECMDGOALS),all)),)
else
ifneq ($(shell pkg-config --exists $(PKGS) cmocka 2>/dev/null && echo y),y)
$(shell scripts/install-deps build >&2)
endif
endif

BUILD_ID := $(shell cat ipc/*.[ch] | cksum | cut -d' ' -f1)
ALLCF := -std=gnu11 -D_GNU_SOURCE -DMC_BUILD_ID='"1.0+$(BUILD_ID)"' $(if $(FAULTS),-DMC_FAULTS) \
	$(WARN) $(CFLAGS) -fno-strict-aliasing $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer) \
	$(shell pkg-config --cflags $(PKGS))
ALLLD := $(LDFLAGS) $(if $(SAN),-fsanitize=$(SAN))

PROCS := capture stage transport netgate restore supervisor exporter
LIBDIRS := ipc qmp verbs
LIBS := $(shell pkg-config --libs $(filter-out gnutls,$(PKGS))) -lpthread

# Processes that talk to QEMU link libmcqmp as well.
capture_EXTRA := $(B)/qmp.a $(B)/verbs.a
capture_LIBS := -lrdmacm -libverbs
# Only processes that use RDMA link its libraries.
transport_EXTRA := $(B)/verbs.a
transport_LIBS := -lrdmacm -libverbs $(shell pkg-config --libs gnutls)
verbs_LIBS := -lrdmacm -libverbs
restore_EXTRA := $(B)/qmp.a

own = $(foreach f,$(wildcard $1/*.c),$(if $(filter main.c mcctl%.c test-% fuzz-%,$(notdir $f)),,$(f:%.c=$(B)/%.o)))
tests = $(patsubst %.c,$(B)/%,$(wildcard $1/test-*.c))

$(shell mkdir -p $(B); echo '$(CC) $(ALLCF)' | cmp -s - $(B)/.flags || echo '$(CC) $(ALLCF)' > $(B)/.flags)

BINS := $(PROCS:%=$(B)/mc-%) $(B)/mcctl
UNIT := $(foreach d,$(LIBDIRS) $(PROCS),$(call tests,$d))
# Fuzz targets: X/fuzz-NAME replays tests/corpus/NAME, X/fuzz-NAME-lf is libFuzzer's.
REPLAY := $(patsubst %.c,$(B)/%,$(filter-out %/fuzz-main.c,$(foreach d,$(LIBDIRS) $(PROCS),$(wildcard $d/fuzz-*.c))))
FUZZ ?= all
FUZZ_SECONDS ?= 60

.PHONY: install deb check-systemd check-libvirt all deps guest demo check check-unit check-integration check-kernel kernel bench bench-programs plots soak fuzz fuzz-bins lint lint-deps clean unit
all: $(BINS)
unit: $(UNIT) $(if $(SAN),$(REPLAY))
fuzz-bins: $(REPLAY:=-lf)

$(foreach d,$(LIBDIRS) $(PROCS),$(eval $(B)/$d.a: $(call own,$d)))
$(B)/%.a:
	@rm -f $@
	$(AR) rcs $@ $^

.SECONDEXPANSION:
$(PROCS:%=$(B)/mc-%): $(B)/mc-%: $(B)/%/main.o $(B)/%.a $$($$*_EXTRA) $(B)/ipc.a
	$(CC) $(ALLLD) -o $@ $^ $($*_LIBS) $(LIBS)
$(B)/mcctl: $(patsubst %.c,$(B)/%.o,$(wildcard supervisor/mcctl*.c)) $(B)/supervisor.a $(B)/ipc.a
	$(CC) $(ALLLD) -o $@ $^ $(LIBS)

# Tests of a process start it.
$(foreach p,$(PROCS),$(if $(call tests,$p),$(eval $(call tests,$p): | $(B)/mc-$p)))
dirof = $(word 1,$(subst /, ,$(patsubst $(B)/%,%,$1)))
$(UNIT): $(B)/%: $(B)/%.o $$(B)/$$(call dirof,$$@).a $$($$(call dirof,$$@)_EXTRA) $(B)/ipc.a
	$(CC) $(ALLLD) $($(@F)_LD) -o $@ $(filter %.o,$^) $(sort $(filter-out %ipc.a,$(filter %.a,$^))) $(B)/ipc.a -lcmocka $($(call dirof,$@)_LIBS) $(LIBS)

test-rdma_LD := $(foreach f,$(shell sed -n 's/^WRAP.[^,]*, \([a-z_]*\),.*/\1/p' transport/test-rdma-fake.h),-Wl,--wrap=verbs_$f)
test-rdma-slabs_LD := $(test-rdma_LD)
test-listen_LD := -Wl,--wrap=sd_event_add_time_relative
test-control_LD = $(if $(filter $(B)/supervisor/%,$@),$(test-listen_LD))
test-verbs_LD := $(foreach f,$(shell sed -n 's/^WRAP.[^,]*, \([a-z_0-9]*\),.*/\1/p' verbs/test-verbs.c),-Wl,--wrap=$f)
fuzz-qmp_LD := -Wl,--wrap=qmp_io_connect,--wrap=qmp_io_send,--wrap=qmp_io_wait_two
$(REPLAY): $(B)/%: $(B)/%.o $(B)/ipc/fuzz-main.o $$(B)/$$(call dirof,$$@).a $$($$(call dirof,$$@)_EXTRA) $(B)/ipc.a
	$(CC) $(ALLLD) $($(@F)_LD) -o $@ $(filter %.o,$^) $(sort $(filter-out %ipc.a,$(filter %.a,$^))) $(B)/ipc.a $(LIBS) \
		$($(call dirof,$@)_LIBS)
$(REPLAY:=-lf): $(B)/%-lf: $(B)/%.o $$(B)/$$(call dirof,$$@).a $$($$(call dirof,$$@)_EXTRA) $(B)/ipc.a
	$(CC) $(ALLLD) -fsanitize=fuzzer $($(@F:-lf=)_LD) -o $@ $(filter %.o,$^) $(sort $(filter-out %ipc.a,$(filter %.a,$^))) \
		$(B)/ipc.a $(LIBS) $($(call dirof,$@)_LIBS)

$(B)/%.o: %.c $(B)/.flags
	@mkdir -p $(@D)
	$(CC) $(ALLCF) -MMD -MP -c -o $@ $<

-include $(shell find $(B) -path $(B)/systemd -prune -o -name '*.d' -type f -print 2>/dev/null)

deps:
	scripts/install-deps all

guest: deps
	tests/guest/build build/guest

demo: guest
	$(MAKE) -j$(JOBS) all
	tests/demo.py

# Debian's kernel for the kernel tests; tests/kernel/run uses it by hand.
kernel: deps
	tests/kernel/run --prepare

# Unit tests, the same under ASan and UBSan, then real guests and real kernels.
check: guest kernel
	$(MAKE) -j$(JOBS) all unit
	$(MAKE) -j$(JOBS) SAN=address,undefined unit
	$(MAKE) -j$(JOBS) FAULTS=1 all build-faults/soak-arm
	tests/run

check-unit: deps
	$(MAKE) -j$(JOBS) all unit
	$(MAKE) -j$(JOBS) SAN=address,undefined unit
	tests/run --unit

check-integration: guest
	$(MAKE) -j$(JOBS) all
	$(MAKE) -j$(JOBS) FAULTS=1 all build-faults/soak-arm
	tests/run --integration

check-kernel: kernel
	$(MAKE) -j$(JOBS) all build/capture/test-tracker
	tests/run --kernel

BENCH_PROGRAMS := $(patsubst tests/bench/%.c,$(B)/bench-%,$(wildcard tests/bench/*.c))
bench: guest
	scripts/install-deps bench
	$(MAKE) B=build all bench-programs
	tests/bench/run $(BENCH)

$(B)/tests/rdma-copy: $(B)/capture/rdma-copy.o
# Plays what is around one mc-transport, in tests on kernels that have RDMA.
$(B)/tests/%: tests/kernel/%.c tests/kernel/transport-roles.h transport/test-link.h $(B)/verbs.a $(B)/ipc.a | $(B)/mc-transport
	@mkdir -p $(@D)
	$(CC) $(ALLCF) -o $@ $(filter %.c %.o,$^) $(B)/verbs.a $(B)/ipc.a -lcmocka $(verbs_LIBS) $(LIBS)

bench-programs: $(BENCH_PROGRAMS)

# DPDK's flags only where its header is used.
$(B)/bench-ring: BENCH_FLAGS = $(shell pkg-config --cflags libdpdk)
$(B)/bench-ring: BENCH_LIBS := -lrte_ring -lrte_eal
$(B)/bench-stage: $(B)/stage/encode.o $(B)/stage/diff.o $(B)/restore/decode.o
$(B)/bench-tls: $(patsubst %,$(B)/transport/%.o,tcp tcp-in tcp-address tls tls-creds tls-peer tls-preamble)
$(B)/bench-tls: BENCH_LIBS := $(shell pkg-config --libs gnutls)
$(B)/bench-%: tests/bench/%.c $(B)/ipc.a
	$(CC) $(ALLCF) -O3 $(BENCH_FLAGS) -o $@ $(filter %.c %.o,$^) $(B)/ipc.a $(BENCH_LIBS) $(LIBS) -lm

plots:
	scripts/install-deps bench
	tests/bench/plots

# Every fault point (MATRIX= leaves them out), then KILLS random kills over all processes: an hour.
# SOAK=... more options of tests/soak/run.
KILLS ?= 1000
MATRIX ?= tests/soak/matrix
soak: guest
	$(MAKE) -j$(JOBS) all build/soak-killer
	$(MAKE) -j$(JOBS) FAULTS=1 all build-faults/soak-arm
	r=0; $(MATRIX) $(if $(MATRIX),|| r=1;) tests/soak/run --kills $(KILLS) $(SOAK) || r=1; \
		$(MAKE) check-systemd || r=1; exit $$r

$(B)/soak-%: tests/soak/%.c $(B)/ipc.a
	$(CC) $(ALLCF) -o $@ $^ $(LIBS)

fuzz:
	scripts/install-deps fuzz
	$(MAKE) CC=clang B=build-fuzz SAN=address,undefined,fuzzer-no-link CFLAGS='-O1 -g -fno-sanitize-recover=all -Wno-missing-field-initializers -Wno-sign-compare' fuzz-bins
	tests/fuzz $(FUZZ_SECONDS) $(FUZZ)

# Runs in a machine whose kernel has sch_plug; with FAULTS=1 netgate can be killed anywhere.
$(B)/netgate/kernel-plug: $(patsubst %.c,$(B)/%.o,$(wildcard tests/kernel/plug*.c)) $(B)/netgate.a $(B)/ipc.a | $(B)/mc-netgate
	$(CC) $(ALLLD) -o $@ $^ -lcmocka $(LIBS)

# DESTDIR and PREFIX as usual; PREFIX=/usr for a package.
PREFIX ?= /usr/local
install: all
	DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) packaging/install $(B)

# Debian packages, in build/deb.
deb:
	scripts/install-deps deb
	packaging/make-deb build/deb

# The packages under a real systemd, in a virtual machine.
check-systemd: deb kernel
	scripts/install-deps systemd
	tests/run --systemd

# A domain of real libvirt daemons.
check-libvirt: guest
	scripts/install-deps libvirt
	$(MAKE) -j$(JOBS) all
	tests/run --libvirt

lint: lint-deps
	clang-format --dry-run -Werror $(wildcard $(patsubst %,%/*.[ch],$(LIBDIRS) $(PROCS)))
	cppcheck --quiet --error-exitcode=1 --enable=warning,portability --inline-suppr \
		--suppress=missingIncludeSystem -D__GNUC__ \
		'-Djson_array_foreach(a,i,v)=for(i=0;(v=json_array_get(a,i));i++)' \
		'-Djson_object_foreach(o,k,v)=for(;(k=json_object_iter_key(o));)' \
		$(LIBDIRS) $(PROCS)
	promtool check rules contrib/alerts.yml
	xmllint --noout --nonet --nowarning packaging/org.microcheckpoint1.policy packaging/org.microcheckpoint1.conf
	for page in packaging/man/*; do LC_ALL=C.UTF-8 man --warnings -l "$$page" 2>&1 >/dev/null | \
		{ ! grep .; } || exit 1; done
	python3 -m json.tool contrib/grafana-dashboard.json >/dev/null
	shellcheck packaging/install packaging/make-deb tests/systemd/build-root
	shellcheck -s bash packaging/mcctl.bash
	shellcheck scripts/install-deps tests/fuzz tests/guest/build tests/guest/init .ci/run

lint-deps:
	scripts/install-deps lint

clean:
	rm -rf build build-san build-faults build-fuzz
