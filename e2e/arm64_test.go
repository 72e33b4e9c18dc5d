package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"unlucky/arch"
	"unlucky/fuzz/evidence"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/qemu/oops"
	"unlucky/seeds"
)

// needARM64 says loudly that kernels of arm64 are left out where nothing boots them.
func needARM64(t *testing.T) {
	t.Helper()
	needKernels(t)
	if _, err := exec.LookPath(arch.Emulator(arch.ARM64.Name)); err != nil {
		t.Skipf("NOT TESTED: kernels of arm64: %v", err)
	}
}

// The small kernel of arm64 is healthy in all layouts, on a CPU with BTI and pointer
// authentication and on one without, and each layout is linked in one pass whatever
// lld has inserted for erratum 843419.
func TestARM64(t *testing.T) {
	needARM64(t)
	for _, test := range []struct {
		cpu, seeds string
		layouts    int
		args       []string
	}{
		{arch.ARM64.CPU, "1:32", 32, nil},
		// In which the order of functions changes, too.
		{"cortex-a57", "25:56", 32, nil},
		{"cortex-a57", "39:42", 4, []string{"-link-without", kbuild.FixErratum}},
	} {
		r := sweepJSON(t, append([]string{"boot-arm64", "-cpu", test.cpu, "-seeds", test.seeds, "-strategy", "cover", "-accel", "tcg", "-o", t.TempDir()}, test.args...)...)
		t.Logf("%s %q: %s, %d in one pass, %.0f layouts an hour", test.cpu, test.args, count(r), r.OnePass, r.PerHour())
		if r.Count(qemu.Pass) != test.layouts || r.Baseline.Kind != qemu.Pass {
			t.Errorf("-cpu %s %q: %s", test.cpu, test.args, count(r))
		}
		kinds := 1 // of plans, of each of which the first is compared
		if test.seeds != "1:32" {
			kinds = 2
		}
		if r.OnePass != test.layouts-kinds {
			t.Errorf("-cpu %s %q: %d of %d layouts were linked in one pass", test.cpu, test.args, r.OnePass, test.layouts)
		}
		if c := r.Coverage.Residues[0]; test.seeds == "1:32" && c.Seen != c.Of {
			t.Errorf("after 32 layouts %d of %d residues mod %d were had", c.Seen, c.Of, c.Modulus)
		}
		patches := map[int]bool{}
		for _, l := range r.Layouts {
			patches[l.Inserted] = true
		}
		code, out := unlucky(t, "coverage", "-n", "0", r.Dir)
		if fixed := test.args == nil; code != 0 || fixed != (len(patches) > 1) || fixed != strings.Contains(out, "\n  inserted ") {
			t.Errorf("%q: layouts with %v patches; exit status %d: %s", test.args, patches, code, out)
		}
	}
}

// The planted bug of arm64 is found, suspected first, replayed, minimized to its
// function and residue, and put into a bundle that shows it by QEMU alone; a shard from
// a kernel file gives the same verdicts.
func TestCanaryARM64(t *testing.T) {
	needARM64(t)
	const title = "Oops: Undefined instruction in canary_reboot"
	dir := t.TempDir()
	r := sweepJSON(t, "canary-arm64", "-seeds", "1:128", "-strategy", "cover", "-accel", "tcg", "-o", dir)
	t.Log(count(r))
	finds := slices.DeleteFunc(slices.Clone(r.Layouts), func(l seeds.Record) bool { return !l.Found })
	if len(finds) == 0 || len(r.Unlucky()) != 1 || r.Unlucky()[0].Title != title {
		t.Fatalf("%+v", r.Unlucky())
	}
	if seed, _ := finds[0].Layout.Seed(); seed > 64 {
		t.Errorf("the first find is seed %d", seed)
	}
	s := suspectsJSON(t, r.Dir)
	if len(s.Suspects) == 0 {
		t.Fatal(s.TooFew)
	}
	if best := s.Suspects[0]; !slices.Contains(names(best.Functions), "canary_victim") || len(best.Functions) > 2 || best.Chance > evidence.Sure {
		t.Errorf("first is %v mod %d, with a chance of %g", names(best.Functions), best.Modulus, best.Chance)
	}
	path := filepath.Join(r.Dir, finds[0].Path)
	if code, out := unlucky(t, "replay", path, "-boots", "2"); code != 0 || !strings.Contains(out, "reproduced in 2 of 2 boots") {
		t.Errorf("replay: exit status %d: %s", code, out)
	}
	m := minimizeJSON(t, path, "-o", seeds.MinimizedPath(path), "-ablate=false")
	if c := m.culprits(); len(c) != 1 || c[0] != "canary_victim" || m.Minimized.Culprits[0].Modulus != 256 ||
		m.Minimized.Culprits[0].Functions[0].Address%256&^15 != 0x30 {
		t.Errorf("culprits %q: %+v", c, m.Minimized.Culprits)
	}
	checkBundleARM64(t, path, title)

	// A shard of the sweep, of a kernel file.
	file := filepath.Join(t.TempDir(), "canary.kernel.tar.zst")
	if code, _ := unlucky(t, "prepare", "canary-arm64", "-o", file); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	seed, _ := finds[0].Layout.Seed()
	shard := sweepJSON(t, "-kernel", file, "-seeds", fmt.Sprintf("%d:%d", seed, seed+7), "-shard", "1/2", "-strategy", "cover", "-accel", "tcg", "-o", t.TempDir())
	if len(shard.Layouts) != 4 || shard.Finds() == 0 {
		t.Errorf("the shard: %s", count(shard))
	}
	for _, l := range shard.Layouts {
		i := slices.IndexFunc(r.Layouts, func(o seeds.Record) bool { return o.Layout == l.Layout })
		if i < 0 {
			continue // behind the sweep's last seed
		}
		if w := r.Layouts[i]; w.Kind != l.Kind || w.Title != l.Title || w.Plan != l.Plan || w.Addresses != l.Addresses || l.Kind != qemu.Pass && w.Image != l.Image || w.Inserted != l.Inserted {
			t.Errorf("seed %s: %+v, and of the build %+v", l.Layout, l, w)
		}
	}
}

// checkBundleARM64 makes a bundle of a saved seed, and shows its crash.
func checkBundleARM64(t *testing.T, path, title string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "a.tar.zst")
	if code, out := unlucky(t, "bundle", path, "-o", file); code != 0 {
		t.Fatalf("exit status %d: %s", code, out)
	}
	to := filepath.Join(dir, "unpacked")
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := seeds.Unpack(t.Context(), file, to, func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}
	mail, err := os.ReadFile(filepath.Join(to, seeds.ReportFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\npc : canary_reboot+0x", "  udf #0  <-- trapping instruction\n", "\nNumbers in it that are addresses of the image:\n", "`canary_victim`"} {
		if !strings.Contains(string(mail), want) {
			t.Errorf("no %q in\n%s", want, mail)
		}
	}
	console, err := exec.CommandContext(t.Context(), filepath.Join(to, seeds.RunFile)).Output()
	if report, _ := oops.Classify(console, false); err != nil || report.Title != title {
		t.Errorf("run.sh: %v, %q, want %q", err, report.Title, title)
	}
	if code, out := unlucky(t, "replay", file, "-boots", "1"); code != 0 {
		t.Errorf("replay of the bundle: exit status %d: %s", code, out)
	}
}

// GCC's kernel of arm64, without LTO and without RELR, is swept as clang's, by function and in one pass.
func TestARM64OfGCC(t *testing.T) {
	needARM64(t)
	needBuilds(t)
	if compiler := arch.ARM64.Cross() + "gcc"; compiler != "" {
		if _, err := exec.LookPath(compiler); err != nil {
			t.Skipf("NOT TESTED: a kernel of arm64 by GCC: %v", err)
		}
	}
	text := `from: boot-arm64
name: boot-arm64-gcc
kernel:
  compiler: gcc
  set: [LTO_CLANG_THIN=n, LTO_NONE=y, CFI_CLANG=n, ARM64_BTI_KERNEL=n, RELR=n]
`
	path := filepath.Join(t.TempDir(), "gcc.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	sweepProven(t, path, 33, 48)
}
