package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"unlucky/cli"
	"unlucky/fuzz/evidence"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// Each kernel is swept by one pass of the linker, which gives the images of the
// whole link-vmlinux.sh byte for byte; all layouts are where they were planned, or
// the sweep would end, and boot.
func TestKernels(t *testing.T) {
	needKernels(t)
	for _, pkg := range []string{"linux-source-6.1", "linux-source"} {
		source, suite := kernelSource(t, pkg)
		t.Run(source+" "+suite, func(t *testing.T) {
			scenario := "boot"
			if pkg == "linux-source" {
				scenario = "kcfi-hash" // whose test builds it, too
			}
			sweepBothWays(t, scenarioWith(t, scenario, source), 249, 272)
		})
	}
}

// The planted bug is met on the newest kernel.
func TestCanaryOfNewest(t *testing.T) {
	needKernels(t)
	source, _ := kernelSource(t, "linux-source")
	r := sweepJSON(t, scenarioWith(t, "canary", source), "-seeds", "1:64", "-accel", "tcg", "-stop-after", "1", "-o", t.TempDir())
	t.Log(count(r))
	if r.Finds() != 1 || r.Unlucky()[0].Title != "invalid opcode in canary_reboot" {
		t.Errorf("%+v", r.Unlucky())
	}
}

// The real bug of kcfi-hash: found, replayed, gone with cfi=off, and minimized to a
// function without a kCFI hash and the one before it, at a distance.
func TestKCFIHash(t *testing.T) {
	needKernels(t)
	kernelSource(t, "linux-source")
	r := sweepJSON(t, "kcfi-hash", "-seeds", "1:1024", "-stop-after", "1", "-o", t.TempDir())
	t.Log(count(r))
	if r.Finds() == 0 {
		t.Fatalf("%s has no unlucky layout in 1024: is it mended there?", r.Object)
	}
	path := filepath.Join(r.Dir, r.Unlucky()[0].Layouts[0].Path)
	if code, out := unlucky(t, "replay", path); code != 0 || !strings.Contains(out, "reproduced in 3 of 3 boots") {
		t.Errorf("exit status %d: %s", code, out)
	}
	if code, out := unlucky(t, "replay", path, "-boots", "1", "-append", "cfi=off", "-json"); code != cli.ExitNo || !strings.Contains(out, `"titles":{"pass":1}`) {
		t.Errorf("with cfi=off: exit status %d: %s", code, out)
	}
	m := minimizeJSON(t, path, "-o", seeds.MinimizedPath(path))
	// clang gives the second of each an ENDBR and no hash, and it can be sealed.
	pairs := []string{"d_alloc __d_alloc", "atomic_notifier_chain_register notifier_chain_register", "desc_make_final _prb_commit"}
	if len(m.culprits()) == 0 {
		t.Error("no culprit")
	}
	for i, c := range m.Minimized.Culprits {
		if name := m.culprits()[i]; !slices.Contains(pairs, name) || !c.Functions[1].Touching || !c.Distance || c.Modulus != 1<<16 {
			t.Errorf("%s, want one of %q that touch, by a distance mod 0x10000: %+v", name, pairs, c)
		}
	}
}

// The trees of UNLUCKY_TREES, which `make test-trees` sets, each as a kernel of
// its own: what works is told for each.
func TestTrees(t *testing.T) {
	trees := strings.Fields(os.Getenv("UNLUCKY_TREES"))
	if len(trees) == 0 {
		t.Skip(`NOT TESTED: no trees are given; make test-trees LINUX="DIR..." sweeps them`)
	}
	for _, tree := range trees {
		t.Run(filepath.Base(tree), func(t *testing.T) {
			sweepBothWays(t, "boot", 253, 260, "-linux", tree)
		})
	}
}

// kernelSource fetches a kernel's source package, and tells where it comes from. A
// mirror that has it not ends the test, loudly.
func kernelSource(t *testing.T, pkg string) (source, from string) {
	t.Helper()
	p, err := kbuild.FetchPackage(t.Context(), kbuild.CacheDir(), pkg, nil)
	if err != nil {
		t.Skipf("NOT TESTED: %s cannot be had here: %v", pkg, err)
	}
	if pkg == "linux-source" && p.Name == "linux-source-6.12" {
		t.Skipf("NOT TESTED: no kernel newer than %s can be had here", p)
	}
	return p.String(), p.From()
}

// scenarioWith writes a built-in scenario with another package, and returns its
// path.
func scenarioWith(t *testing.T, name, pkg string) string {
	t.Helper()
	s, err := scenarios.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	s.Kernel.Package = pkg
	data, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "scenario.yaml")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// sweepBothWays sweeps seeds of a scenario, of which those from 257 on change the
// order of functions, by one pass of the linker and by the whole script, and
// holds the images against each other. Of boot, and what takes it over, all layouts must pass.
func sweepBothWays(t *testing.T, scenario string, first, last int, args ...string) {
	t.Helper()
	sweep := func(full bool) evidence.Report {
		r := sweepJSON(t, append([]string{scenario, "-seeds", fmt.Sprintf("%d:%d", first, last), "-accel", "tcg", "-o", t.TempDir(),
			fmt.Sprint("-full-script=", full)}, args...)...)
		t.Logf("whole script %v: %s, %d placed and linked in one pass, %.0f layouts an hour", full, count(r), r.OnePass, r.PerHour())
		return r
	}
	short, full := sweep(false), sweep(true)
	layouts := last - first + 1
	if verdicts(short) != verdicts(full) || len(short.Layouts) != layouts {
		t.Errorf("by one pass:\n%sby the script:\n%s", verdicts(short), verdicts(full))
	}
	if short.OnePass != layouts-2 || full.OnePass != 0 { // the first of each kind is compared
		t.Errorf("%d of %d layouts were linked in one pass, with -full-script %d", short.OnePass, layouts, full.OnePass)
	}
	if strings.HasPrefix(short.Scenario, "boot") && (short.Count(qemu.Pass) != layouts || short.Baseline.Kind != qemu.Pass) {
		t.Errorf("a healthy kernel: %s", count(short))
	}
	// Functions that are not aligned to 16 (6.1) have more residues than a few seeds.
	if c := short.Coverage; c.Residues[0].Of == c.Functions*64/16 && c.Residues[0].Seen != c.Residues[0].Of {
		t.Errorf("%d of %d residues mod 64", c.Residues[0].Seen, c.Residues[0].Of)
	}
}
