package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"unlucky/cli"
	"unlucky/layout"
	"unlucky/linker"
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
			sweepProven(t, kernelScenario(t, pkg, source), 33, 48)
		})
	}
}

// kernelScenario writes a scenario of a package, of which source was fetched, and returns
// its path: one kernel for all tests.
func kernelScenario(t *testing.T, pkg, source string) string {
	t.Helper()
	scenario := "boot"
	if pkg == "linux-source" {
		scenario = "kcfi-hash" // whose test builds it, too
	}
	return scenarioWith(t, scenario, source)
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
	dir := t.TempDir()
	if code, out := unlucky(t, "replay", path, "-boots", "1", "-keep", dir); code != 0 {
		t.Fatalf("exit status %d: %s", code, out)
	}
	pairs, err := hashPairs(filepath.Join(dir, "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the image says: %q", pairs)
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
			sweepProven(t, "boot", 37, 44, "-linux", tree)
		})
	}
}

// kernelSource fetches a kernel's source package, and tells where it comes from. A
// mirror that has it not ends the test, loudly.
func kernelSource(t *testing.T, pkg string) (source, from string) {
	t.Helper()
	told := ""
	p, err := kbuild.FetchPackage(t.Context(), kbuild.CacheDir(), pkg, func(step string, _, _ int64) {
		if step != told {
			told = step
			t.Log(step)
		}
	})
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

// sweepProven sweeps seeds of a scenario, of which those from 41 on change the
// order of functions, and holds the images that delta links against those of the whole
// script. Of boot, and what takes it over, all layouts must pass.
func sweepProven(t *testing.T, scenario string, first, last int, args ...string) {
	t.Helper()
	r := sweepJSON(t, append([]string{scenario, "-seeds", fmt.Sprintf("%d:%d", first, last), "-accel", "tcg", "-o", t.TempDir()}, args...)...)
	t.Logf("%s, %d placed and linked without the script, %d without lld, %.0f layouts an hour", count(r), r.OnePass, r.Delta, r.PerHour())
	layouts := last - first + 1
	s, err := scenarios.Load(scenario)
	if err != nil {
		t.Fatal(err)
	}
	if len(args) > 1 && args[0] == "-linux" {
		s.Kernel.Dir, s.Kernel.Package = args[1], ""
	}
	plans := func(sections []layout.Section) []layout.Plan { return plansOf(layout.Cover, first, last, sections) }
	sameImages(t, linkPlans(t, s.Kernel, linker.Delta, plans), linkPlans(t, s.Kernel, linker.Script, plans))
	if r.OnePass != layouts-2 { // the first of each kind is compared
		t.Errorf("%d of %d layouts were linked without the script", r.OnePass, layouts)
	}
	if strings.HasPrefix(r.Scenario, "boot") && (r.Count(qemu.Pass) != layouts || r.Baseline.Kind != qemu.Pass) {
		t.Errorf("a healthy kernel: %s", count(r))
	}
	// Functions that are not aligned to 16 (6.1) have more residues than a few seeds.
	if c := r.Coverage; c.Residues[0].Of == c.Functions*64/16 && c.Residues[0].Seen != c.Residues[0].Of {
		t.Errorf("%d of %d residues mod 64", c.Residues[0].Seen, c.Residues[0].Of)
	}
}
