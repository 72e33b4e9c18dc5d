package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"unlucky/autopsy"
	"unlucky/fuzz"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// TestAutopsy: a sweep with autopsies has the verdicts of one without, and fewer bugs than
// titles; where two tables meet is told, and the damage is mended.
func TestAutopsy(t *testing.T) {
	needKernels(t)
	dir := t.TempDir()
	plain := sweepJSON(t, "kcfi-seal", "-seeds", "1:19", "-accel", "tcg", "-o", dir)
	r := sweepJSON(t, "kcfi-seal", "-seeds", "1:19", "-accel", "tcg", "-o", t.TempDir(), "-autopsy")
	if verdicts(r) != verdicts(plain) {
		t.Errorf("with -autopsy:\n%swithout\n%s", verdicts(r), verdicts(plain))
	}
	titles := 0
	for _, b := range r.Bugs {
		titles += len(b.Titles)
		t.Logf("%s: %q", b.Damage, b.Titles)
	}
	if want := len(r.Unlucky()); titles != want || len(r.Bugs) >= want {
		t.Errorf("%d bugs have %d titles of %d", len(r.Bugs), titles, want)
	}
	failed, passed := 0, 0
	for _, l := range r.Layouts {
		count := &passed
		if l.Found {
			count = &failed
		}
		if l.Path == "" || *count == 1 {
			continue
		}
		*count++
		got := autopsyJSON(t, filepath.Join(r.Dir, l.Path), "-heal")
		for _, d := range got.Damage {
			if len(d.Meet) != 2 {
				t.Errorf("seed %s: %s: no two tables meet: %+v", l.Layout, d.Function, d.Sites)
			}
		}
		if h := got.Healed; (h != nil) != (len(got.Damage) > 0) || h != nil && (h.Kind != qemu.Pass || len(h.Mended) != len(got.Damage)) {
			t.Errorf("seed %s: healed %+v", l.Layout, h)
		}
	}
	if failed == 0 || passed == 0 {
		t.Fatalf("%d layouts that fail and %d that pass, want some of both", failed, passed)
	}
}

// autopsyJSON is an autopsy of a saved seed.
func autopsyJSON(t *testing.T, path string, args ...string) (a fuzz.Autopsy) {
	t.Helper()
	code, out := unlucky(t, append([]string{"autopsy", path, "-json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &a); code != 0 || err != nil {
		t.Fatalf("exit status %d, %v: %s", code, err, out)
	}
	t.Logf("%.1f s beside %d boots", a.Seconds, a.Boots)
	if a.Seconds > maxCompared {
		t.Errorf("%.1f s beside the boots", a.Seconds)
	}
	return a
}

// maxCompared bounds what an autopsy of a small kernel takes beside its boots, in
// seconds.
const maxCompared = 5

// sealDamage are the functions that sealing damages, by an image.
func sealDamage(vmlinux string) (names []string, err error) {
	hits, err := sealHits(vmlinux)
	for _, h := range hits {
		if h.Harmful {
			names = append(names, h.Before)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), err
}

// TestAutopsies: of all layouts, what is damaged is what the image predicts, and some of it
// has run where a layout fails, and hardly any where it passes; nothing is damaged in a
// healthy kernel, nor where nothing is sealed.
func TestAutopsies(t *testing.T) {
	needKernels(t)
	for _, test := range []struct {
		scenario, append string
		predict          func(string) ([]string, error)
	}{
		{"kcfi-seal", "", sealDamage},
		{"kcfi-seal", " cfi=off", nil},
		{"boot", "", nil},
	} {
		t.Run(test.scenario+test.append, func(t *testing.T) {
			s, err := scenarios.Load(test.scenario)
			if err != nil {
				t.Fatal(err)
			}
			s.Guest.Append += test.append
			failed, harmless := 0, 0
			for _, l := range lookInto(t, s, 1, 64, test.predict) {
				t.Log(l)
				all, ran := l.names()
				if !l.passed() {
					failed++
				}
				// One that crashes early has not sealed them all.
				for _, name := range l.want {
					if l.passed() && !slices.Contains(all, name) {
						t.Errorf("seed %d: %s is damaged by the image", l.seed, name)
					}
				}
				for _, name := range all {
					if !slices.Contains(l.want, name) {
						t.Errorf("seed %d: %s is not damaged by the image", l.seed, name)
					}
				}
				if !l.passed() && ran == nil {
					t.Errorf("seed %d: no damage has run", l.seed)
				}
				if l.passed() && ran != nil {
					harmless++
				}
			}
			t.Logf("%d of 64 layouts fail; in %d of those that pass damage has run", failed, harmless)
			if (failed > 0) != (test.predict != nil) || harmless > 3 {
				t.Errorf("%d layouts fail, and in %d that pass damage has run", failed, harmless)
			}
		})
	}
}

// TestHashAutopsies: in the newest kernel, whose kCFI checks are rewritten at places that no
// table lists, the code that sealing has destroyed is named in each layout that fails, as
// code that has run, or that the console names, with the two tables where it is a return;
// where it passes none has run. None is named that sealing has not destroyed.
func TestHashAutopsies(t *testing.T) {
	needKernels(t)
	source, _ := kernelSource(t, "linux-source")
	s, err := scenarios.Load("kcfi-hash")
	if err != nil {
		t.Fatal(err)
	}
	s.Kernel.Package = source
	last := 64
	if os.Getenv("UNLUCKY_BUILDS") != "" {
		last = 256
	}
	failed := 0
	for _, l := range lookInto(t, s, 1, last, hashPairs) {
		_, ran := l.names()
		if named := len(l.damage) > 0 && l.damage[0].Named; l.passed() && ran != nil || !l.passed() && ran == nil && !named {
			t.Errorf("%s", l)
		}
		for _, d := range l.damage {
			t.Logf("seed %d: %s: %s; %s -> %s", l.seed, l.Title, d, d.Disk.Bytes, d.Memory.Bytes)
			seal := slices.IndexFunc(d.Sites, func(s autopsy.Site) bool {
				return s.Table == "seal-hash" && slices.Contains(l.want, d.Function+" "+s.For)
			})
			returns := slices.ContainsFunc(d.Sites, func(s autopsy.Site) bool { return s.Table == "return" })
			if seal < 0 || returns && len(d.Meet) != 2 {
				t.Errorf("seed %d: %s: %+v, want one of %q", l.seed, d, d.Sites, l.want)
			}
		}
		if !l.passed() {
			failed++
		}
	}
	if t.Logf("%d of %d layouts fail", failed, last); failed == 0 {
		t.Error("no layout fails")
	}
}
