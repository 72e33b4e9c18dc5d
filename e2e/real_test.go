package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"unlucky/cli"
	"unlucky/fuzz/evidence"
	"unlucky/fuzz/search"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// needKernels says loudly that a test of real kernels is left out. Nothing
// but -short leaves it out.
func needKernels(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("NOT TESTED with -short: sweeps of real kernels, which make test-all builds")
	}
}

// slow leaves a test of many small boots out with -short, and with nothing else.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("NOT TESTED with -short: sweeps that are killed, or share a folder, for a minute and more")
	}
}

// unlucky runs a command line in this process and returns its exit status and
// its standard output.
func unlucky(t *testing.T, args ...string) (int, string) {
	t.Helper()
	t.Logf("unlucky %s", qemu.Quote(args))
	var out bytes.Buffer
	code := cli.Run(t.Context(), args, nil, &out)
	return code, out.String()
}

// sweepJSON is a sweep whose report is read back.
func sweepJSON(t *testing.T, args ...string) evidence.Report {
	t.Helper()
	code, out := unlucky(t, append([]string{"sweep", "-json"}, args...)...)
	if code != 0 {
		t.Fatalf("exit status %d", code)
	}
	var r evidence.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func count(r evidence.Report) string {
	return fmt.Sprintf("%d passed, %d unlucky, %d do not link, of %d", r.Count(qemu.Pass), r.Finds(), r.Count(qemu.LinkFailed), len(r.Layouts))
}

// The real bug of kcfi-seal: found, replayed, gone with cfi=off, and minimized.
func TestKCFISeal(t *testing.T) {
	needKernels(t)
	r := sweepJSON(t, "kcfi-seal", "-seeds", "1:16", "-o", t.TempDir())
	t.Log(count(r))
	if r.Strategy != layout.Cover {
		t.Errorf("auto became %s: a kernel's script takes padding in text only", r.Strategy)
	}
	if r.Finds() == 0 || r.Count(qemu.Pass) == 0 {
		t.Fatal("want unlucky layouts and ones that pass")
	}
	replayed := 0
	for _, l := range r.Layouts {
		if l.Path == "" || replayed == 2 {
			continue
		}
		replayed++
		path := filepath.Join(r.Dir, l.Path)
		if code, out := unlucky(t, "replay", path, "-boots", "3"); code != 0 || !strings.Contains(out, "reproduced in 3 of 3 boots") {
			t.Errorf("exit status %d: %s", code, out)
		}
		if !l.Found {
			continue
		}
		code, out := unlucky(t, "replay", path, "-boots", "1", "-append", "cfi=off", "-json")
		if code != cli.ExitNo || !strings.Contains(out, `"titles":{"pass":1}`) {
			t.Errorf("with cfi=off seed %s: exit status %d: %s", l.Layout, code, out)
		}
	}

	i := slices.IndexFunc(r.Layouts, func(l seeds.Record) bool { return l.Kind == qemu.Crash })
	checkSeal(t, filepath.Join(r.Dir, r.Layouts[i].Path))
}

// As a bzImage, with KASLR and the decompressor, the layouts of kcfi-seal fare as
// they do as a vmlinux.
func TestBzImage(t *testing.T) {
	needKernels(t)
	sweep := func(image string) evidence.Report {
		// A loaded machine decompresses for seconds.
		text := fmt.Sprintf("from: kcfi-seal\nname: kcfi-seal\nkernel:\n  image: %s\nguest:\n  limit: 60s\n", image)
		path := filepath.Join(t.TempDir(), image+".yaml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return sweepJSON(t, path, "-seeds", "1:4", "-accel", "tcg", "-o", t.TempDir())
	}
	if got, want := sweep("bzImage"), sweep("vmlinux"); verdicts(got) != verdicts(want) || want.Finds() == 0 || want.Count(qemu.Pass) == 0 {
		t.Errorf("as bzImage:\n%swant\n%s", verdicts(got), verdicts(want))
	}
}

// minimized is what minimize -json prints.
type minimized struct {
	Plan      layout.Plan
	Minimized seeds.Minimized
}

// minimizeJSON minimizes a saved seed.
func minimizeJSON(t *testing.T, path string, args ...string) (m minimized) {
	t.Helper()
	code, out := unlucky(t, append([]string{"minimize", path, "-json", "-j", "2", "-o", filepath.Join(t.TempDir(), "min.yaml")}, args...)...)
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		t.Fatalf("exit status %d, %v", code, err)
	}
	if want := map[bool]int{true: 0, false: cli.ExitFailed}[m.Minimized.Complete]; code != want {
		t.Errorf("exit status %d, want %d", code, want)
	}
	for _, c := range m.Minimized.Culprits {
		t.Log(c)
	}
	t.Logf("%d boots", m.Minimized.Boots)
	return m
}

// culprits are the names of the functions of each culprit.
func (m minimized) culprits() (out []string) {
	for _, c := range m.Minimized.Culprits {
		var names []string
		for _, f := range c.Functions {
			names = append(names, f.Name)
		}
		out = append(out, strings.Join(names, " "))
	}
	return out
}

// checkSeal minimizes a layout of the seal bug and holds the culprits against
// what the image itself says is overwritten.
func checkSeal(t *testing.T, path string) {
	m := minimizeJSON(t, path, "-o", seeds.MinimizedPath(path))
	dir := t.TempDir()
	if code, _ := unlucky(t, "replay", path, "-boots", "1", "-keep", dir); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	hits, err := sealHits(filepath.Join(dir, "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	harmed := map[string]bool{}
	for _, h := range hits {
		if h.Harmful && h.Return && h.Lower {
			harmed[h.Before+" "+h.Sealed] = true
		}
	}
	t.Logf("the image says: %v", slices.Sorted(maps.Keys(harmed)))
	if len(m.Minimized.Culprits) == 0 {
		t.Error("no culprit")
	}
	for i, c := range m.Minimized.Culprits {
		if name := m.culprits()[i]; !harmed[name] {
			t.Errorf("%s: the image does not say that its return is overwritten", name)
		}
		if len(c.Functions) != 2 || !c.Functions[1].Touching || c.Modulus != 64 || len(c.Residues) != 4 {
			t.Errorf("want two functions that touch, with four residues mod 64: %+v", c)
		}
	}
	a := m.Minimized.Autopsy
	if a == nil || len(a.Damage) == 0 || !a.Damage[0].Executed() {
		t.Fatalf("its memory has told of no damage that has run: %+v", a)
	}
	for _, d := range a.Damage {
		if d.Culprit > 0 && !slices.ContainsFunc(m.Minimized.Culprits[d.Culprit-1].Functions, func(f seeds.Function) bool { return f.Name == d.Function }) {
			t.Errorf("%s is no part of culprit %d", d, d.Culprit)
		}
	}
	if a.Damage[0].Culprit == 0 {
		t.Errorf("%s has run, and is of no culprit", a.Damage[0])
	}
	if n := m.Minimized.Boots - len(m.Minimized.Switches); n > 40*len(m.Minimized.Culprits) {
		t.Errorf("%d boots for %d culprits", n, len(m.Minimized.Culprits))
	}
	for _, s := range m.Minimized.Switches {
		if mends := strings.HasPrefix(s.Append, "cfi=") || strings.HasPrefix(s.Append, "indirect_target"); mends && s.Verdict() != "passes" {
			t.Errorf("with %s it %s", s.Append, s.Verdict())
		}
	}
}

// The fix of the real bug is one: the baseline, what has failed and other layouts
// pass, and so do the culprits, put where they failed. What a patch that is no fix
// does stands in TestPlanted.
func TestVerify(t *testing.T) {
	needKernels(t)
	r := sweepJSON(t, "kcfi-seal", "-seeds", "1:16", "-o", t.TempDir())
	path := filepath.Join(r.Dir, r.Unlucky()[0].Layouts[0].Path)
	minimizeJSON(t, path, "-ablate=false", "-o", seeds.MinimizedPath(path))
	code, v := verifyJSON(t, r.Dir, "../examples/hash.patch")
	if code != 0 || v.Conclusion != search.Fixed || v.Passed != 64 || v.Sweep.Baseline.Kind != qemu.Pass {
		t.Errorf("exit status %d, %s, %d of 64 layouts pass", code, v.Conclusion, v.Passed)
	}
	for _, c := range v.Culprits {
		if c.Failed || c.Layouts < 4 || c.Boots != c.Layouts || c.Notes != nil {
			t.Errorf("a culprit fares so: %+v", c)
		}
	}
}

// unrelatedPatch writes a patch that has to do with no bug.
func unrelatedPatch(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "unrelated.patch")
	const text = `--- a/init/main.c
+++ b/init/main.c
@@ -1354,1 +1354,1 @@
-	pr_info("Run %s as init process\n", init_filename);
+	pr_info("Run %s as the init process\n", init_filename);
`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// verifyJSON verifies a patch on the sweeps of a folder.
func verifyJSON(t *testing.T, dir, patch string) (code int, v search.Verified) {
	t.Helper()
	code, out := unlucky(t, "verify", dir, "-patch", patch, "-o", filepath.Join(t.TempDir(), "verify"), "-json")
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("exit status %d, %v", code, err)
	}
	t.Log(&v)
	if len(v.Culprits) == 0 {
		t.Error("no culprit was tried")
	}
	return code, v
}

// verdicts is what must not depend on how a sweep was run.
func verdicts(r evidence.Report) string {
	var b strings.Builder
	for _, l := range r.Layouts {
		fmt.Fprintf(&b, "%s %s %v %s", l.Layout, l.Kind, l.Found, l.Addresses)
		if l.Kind != qemu.Pass { // of those that pass only the first few are saved
			fmt.Fprintf(&b, " %s", l.Image)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// A kernel that is prepared in several folders is the same, byte for byte, from
// scratch or from a copy of one that has other patches. Its baseline is the
// vmlinux that make linked, but for the build ID.
func TestReproducible(t *testing.T) {
	needKernels(t)
	needBuilds(t)
	prepare := func(cache, scenario string) (k *linker.Kernel, steps string) {
		s, err := scenarios.Load(scenario)
		if err != nil {
			t.Fatal(err)
		}
		k, err = linker.Prepare(t.Context(), cache, s.Kernel, func(step string, done, total int64) {
			if !strings.HasSuffix(steps, step+"\n") {
				steps += step + "\n"
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return k, steps
	}
	other, _ := prepare(kbuild.CacheDir(), "kcfi-seal")
	other.Close()
	withOther := t.TempDir()
	if err := os.Symlink(other.Dir, filepath.Join(withOther, filepath.Base(other.Dir))); err != nil {
		t.Fatal(err)
	}
	var kernels []*linker.Kernel
	for _, test := range []struct{ cache, step string }{
		{kbuild.CacheDir(), ""},
		{t.TempDir(), "unpacking "},
		{withOther, "copying the prepared kernel that differs by seal-mend.patch, planted.patch "},
	} {
		k, steps := prepare(test.cache, "canary")
		defer k.Close()
		if !strings.HasPrefix(steps, test.step) {
			t.Errorf("it was made in other steps than %s:\n%s", test.step, steps)
		}
		for _, same := range kernels {
			if k.Source == same.Source || k.Digest != same.Digest {
				t.Errorf("vmlinux.o is %s in %s and %s in %s", same.Digest, same.Source, k.Digest, k.Source)
			}
		}
		kernels = append(kernels, k)
	}
	w, err := kernels[0].NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	image, err := w.Link(t.Context(), layout.Plan{})
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"vmlinux": image.VMLinux, "System.map": image.SystemMap} {
		got, err1 := os.ReadFile(path)
		want, err2 := os.ReadFile(filepath.Join(kernels[0].Objtree, name))
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		const constant = buildIDNote + "unlucky: no build ID"
		if i := bytes.Index(got, []byte(constant)); i >= 0 && bytes.HasPrefix(want[i:], []byte(buildIDNote)) {
			copy(want[i:], constant)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s of the baseline is not the one that make linked", name)
		}
	}
}

// buildIDNote is the head of the note with a build ID of 20 bytes (elf(5),
// NT_GNU_BUILD_ID).
const buildIDNote = "\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00"

// The planted bug, and the same kernel with nothing switched on.
func TestPlanted(t *testing.T) {
	needKernels(t)
	r := sweepJSON(t, "canary", "-seeds", "1:64", "-accel", "tcg", "-o", t.TempDir())
	t.Log(count(r))
	if r.Finds() == 0 || r.Finds() > 12 {
		t.Errorf("%d finds in 64 layouts, want a few", r.Finds())
	}
	for _, f := range r.Unlucky() {
		if f.Title != "invalid opcode in canary_reboot" {
			t.Errorf("unlucky by %q", f.Title)
		}
	}
	path := filepath.Join(r.Dir, r.Unlucky()[0].Layouts[0].Path)
	m := minimizeJSON(t, path, "-o", seeds.MinimizedPath(path))
	if len(m.culprits()) != 1 || m.culprits()[0] != "canary_victim" || m.Minimized.Culprits[0].Modulus != 256 ||
		m.Minimized.Culprits[0].Functions[0].Address%256 != 0x30 || m.Minimized.Boots > 60 {
		t.Errorf("%v in %d boots, want canary_victim at 0x30 mod 0x100 in at most 60", m.Minimized.Culprits, m.Minimized.Boots)
	}
	if len(m.Plan.Paddings) != 1 || len(m.Plan.Order)+len(m.Minimized.Twin.Paddings)+len(m.Minimized.Twin.Order) > 0 {
		t.Errorf("the smallest plan is %v, its twin %v; want one padding, and the baseline", m.Plan, m.Minimized.Twin)
	}
	// A patch that has nothing to do with it is told by the first boots: the old
	// culprit, put where it failed.
	code, v := verifyJSON(t, r.Dir, unrelatedPatch(t))
	if code != cli.ExitNo || v.Conclusion != search.NotFixed || len(v.Culprits) != 1 || !v.Culprits[0].Failed || v.Passed > 0 {
		t.Errorf("with an unrelated patch: exit status %d, %s, %+v", code, v.Conclusion, v.Culprits)
	}
	if code, out := unlucky(t, "replay", v.File, "-boots", "1"); code != 0 {
		t.Errorf("exit status %d: %s", code, out)
	}
	// As in canary-flaky, whose sweep may miss its only layouts: two boots of three
	// fail, 20 alike by a chance of 0.03 %. TestMinimizeFlaky minimizes such a crash.
	if code, out := unlucky(t, "replay", path, "-boots", "20", "-append", "unlucky=canary,flaky", "-json"); code != 0 ||
		!strings.Contains(out, `"pass":`) || !strings.Contains(out, `"invalid opcode in canary_reboot":`) {
		t.Errorf("flaky: exit status %d: %s", code, out)
	}
	for _, cpu := range []string{"max", "Nehalem", "EPYC"} {
		r := sweepJSON(t, "boot", "-seeds", "251:262", "-cpu", cpu, "-accel", "tcg", "-o", t.TempDir())
		t.Log(cpu, count(r))
		if r.Count(qemu.Pass) != 12 || r.Baseline.Kind != qemu.Pass {
			t.Errorf("-cpu %s: %s", cpu, count(r))
		}
	}
}

// The planted bugs of other kinds, each minimized to its functions and to no
// other.
func TestMinimizePlanted(t *testing.T) {
	needKernels(t)
	for _, test := range []struct {
		scenario, culprit, says string
		boots                   int // at most
	}{
		{"early", "early_victim", "`early_victim` is at 0x30 mod 0x40", 60},
		{"pair", "pair_first pair_second", "`pair_first` and `pair_second` are at the same residue mod 0x100", 110},
		{"page-cross", "page_cross_victim", "`page_cross_victim` is at 0xd10 to 0xff0 mod 0x1000", 60},
	} {
		t.Run(test.scenario, func(t *testing.T) {
			r := sweepJSON(t, test.scenario, "-seeds", "1:64", "-accel", "tcg", "-stop-after", "1", "-o", t.TempDir())
			if r.Finds() != 1 {
				t.Fatal(count(r))
			}
			m := minimizeJSON(t, filepath.Join(r.Dir, r.Unlucky()[0].Layouts[0].Path), "-ablate=false")
			if m.Minimized.Boots > test.boots {
				t.Errorf("%d boots, at most %d wanted", m.Minimized.Boots, test.boots)
			}
			if c := m.culprits(); len(c) != 1 || c[0] != test.culprit || !strings.Contains(m.Minimized.Culprits[0].String(), test.says) {
				t.Errorf("%v, want %s", m.Minimized.Culprits, test.says)
			}
		})
	}
}

// One pass of the linker, with kallsyms' table made anew, gives the images of
// the whole link-vmlinux.sh, byte for byte, in whatever order the sections are.
func TestShortcut(t *testing.T) {
	needKernels(t)
	s, err := scenarios.Load("kcfi-seal")
	if err != nil {
		t.Fatal(err)
	}
	plans := func(sections []layout.Section) []layout.Plan {
		all := plansOf(layout.Cover, 256, 256, sections)
		for seed := range 3 { // of shuffle and of cover each is an order of its own
			all = append(all, plansOf(layout.Text, seed, seed, sections)...)
			all = append(all, plansOf(layout.Shuffle, seed, seed, sections)...)
			all = append(all, plansOf(layout.Cover, 513+64*seed, 513+64*seed, sections)...)
		}
		return all
	}
	pass, script := linkPlans(t, s.Kernel, linker.Pass, plans), linkPlans(t, s.Kernel, linker.Script, plans)
	sameImages(t, pass, script)
	if n := len(script.digests); pass.by[linker.Pass] != n-2 || script.by[linker.Script] != n { // the first of each kind is compared
		t.Errorf("of %d layouts: %v and %v", n, pass.by, script.by)
	}
}

// Strategies on the real kernel, by what llvm-nm reads off the images: functions
// are where the plans say, in another order too; with cover each has been at
// each residue mod 64 after 4 layouts and mod 256 after 16; a sweep claims just
// the coverage that is there, and the planted bug is met by the seed that the
// addresses tell.
func TestCover(t *testing.T) {
	needKernels(t)
	s, err := scenarios.Load("canary")
	if err != nil {
		t.Fatal(err)
	}
	k, sections, w := openKernel(t, s.Kernel, linker.Delta)
	var functions []int
	for i, s := range sections {
		if layout.Movable(sections, i) && s.Function != "" {
			functions = append(functions, i)
		}
	}
	link := func(plan layout.Plan) map[string][]uint64 {
		t.Helper()
		image, err := w.Link(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		all := nm(t, filepath.Join(k.Toolchain.Dir, "llvm-nm"), image.VMLinux)
		if err := image.Remove(); err != nil {
			t.Fatal(err)
		}
		predicted, err := layout.Place(sections, plan)
		if err != nil {
			t.Fatal(err)
		}
		known := 0
		for _, i := range functions {
			s := sections[i]
			if at := all[s.Function]; len(at) == 1 { // the only one of its name
				if known++; at[0] != predicted[i]+s.Entry {
					t.Fatalf("%s is at %#x, predicted at %#x", s.Function, at[0], predicted[i]+s.Entry)
				}
			}
		}
		if known < 7000 {
			t.Fatalf("only %d functions were compared", known)
		}
		return all
	}
	claimed := map[uint64]map[residue]bool{64: {}, 256: {}, 4096: {}} // what the sweep should claim
	count := func(all map[string][]uint64) {
		for n, address := range addressesByName(sections, functions, all) {
			for modulus, residues := range claimed {
				residues[residue{functions[n], address % modulus}] = true
			}
		}
	}
	full := func(modulus uint64) (n int) {
		for _, i := range functions {
			n += int(max(1, modulus/sections[i].Alignment()))
		}
		return n
	}
	var want []string
	for seed := uint32(1); seed <= 16; seed++ {
		all := link(layout.Cover.Plan(seed, sections))
		count(all)
		if all["canary_victim"][0]%256 == 0x30 {
			want = append(want, fmt.Sprint(seed))
		}
		if modulus := uint64(16 * seed); (seed == 4 || seed == 16) && len(claimed[modulus]) != full(modulus) {
			t.Errorf("after %d layouts %d residues mod %d were seen, of %d", seed, len(claimed[modulus]), modulus, full(modulus))
		}
	}
	count(link(layout.Plan{}))
	for _, seed := range []uint32{41, 42, 513} {
		link(layout.Cover.Plan(seed, sections))
		link(layout.Shuffle.Plan(seed, sections))
	}

	dir := t.TempDir()
	r := sweepJSON(t, "canary", "-strategy", "cover", "-seeds", "1:16", "-accel", "tcg", "-o", dir)
	for _, c := range r.Coverage.Residues {
		if c.Seen != len(claimed[c.Modulus]) || c.Of != full(c.Modulus) || c.Modulus <= 256 && c.Seen != c.Of {
			t.Errorf("coverage mod %d is %d of %d, by llvm-nm %d of %d", c.Modulus, c.Seen, c.Of, len(claimed[c.Modulus]), full(c.Modulus))
		}
	}
	if r.Coverage.Functions != len(functions) || len(functions) < 8000 || r.Coverage.Layouts != 17 {
		t.Errorf("coverage of %d functions by %d layouts, want %d by 17", r.Coverage.Functions, r.Coverage.Layouts, len(functions))
	}
	code, out := unlucky(t, "coverage", dir, "-json", "-n", "1")
	var later []struct{ Totals evidence.Totals }
	if err := json.Unmarshal([]byte(out), &later); code != 0 || err != nil || len(later) != 1 || later[0].Totals != *r.Coverage {
		t.Errorf("unlucky coverage: status %d, %v, %s; the sweep said %+v", code, err, out, *r.Coverage)
	}
	var found []string
	for _, l := range r.Layouts {
		if l.Found {
			found = append(found, l.Layout.String())
		}
	}
	if !slices.Equal(found, want) || len(found) != 1 {
		t.Errorf("unlucky seeds %v, by the addresses %v, want one", found, want)
	}
}

// nm are the addresses of an image's symbols by name, in order.
func nm(t *testing.T, tool, path string) map[string][]uint64 {
	t.Helper()
	out, err := exec.Command(tool, "-n", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]uint64{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if address, err := strconv.ParseUint(f[0], 16, 64); err == nil && len(f) == 3 {
			all[f[2]] = append(all[f[2]], address)
		}
	}
	return all
}

// residue is one of the function of a section of the layout.
type residue struct {
	section int
	residue uint64
}

// addressesByName are those of some sections' functions, by symbols alone. Of
// functions of one name, the order is that of the layout.
func addressesByName(layout []layout.Section, functions []int, symbols map[string][]uint64) (out []uint64) {
	taken := map[string]int{}
	for _, i := range functions {
		name := layout[i].Function
		out = append(out, symbols[name][taken[name]])
		taken[name]++
	}
	return out
}
