package e2e

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"

	"unlucky/autopsy"
	"unlucky/fuzz"
	"unlucky/qemu"
)

// TestAutopsy: the memory of a dead kernel names what the image predicts that sealing
// destroys, and nothing else; in a layout that fails some of it has run, and in one that
// passes none.
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
		path, kept := filepath.Join(r.Dir, l.Path), t.TempDir()
		if code, out := unlucky(t, "replay", path, "-boots", "1", "-keep", kept); code != 0 {
			t.Fatalf("exit status %d: %s", code, out)
		}
		hits, err := sealHits(filepath.Join(kept, "vmlinux"))
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, h := range hits {
			if h.Harmful {
				want = append(want, h.Before)
			}
		}
		code, out := unlucky(t, "autopsy", path, "-json", "-heal")
		var got struct {
			Damage []autopsy.Damage
			Healed *fuzz.Healed
		}
		if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
			t.Fatalf("exit status %d, %v: %s", code, err, out)
		}
		var names, ran []string
		for _, d := range got.Damage {
			if names = append(names, d.Function); d.Executed() {
				ran = append(ran, d.Function)
			}
			if len(d.Meet) != 2 {
				t.Errorf("seed %s: %s: no two tables meet: %+v", l.Layout, d.Function, d.Sites)
			}
		}
		if h := got.Healed; (h != nil) != (len(got.Damage) > 0) || h != nil && (h.Kind != qemu.Pass || len(h.Mended) != len(got.Damage)) {
			t.Errorf("seed %s: healed %+v", l.Layout, h)
		}
		slices.Sort(want)
		slices.Sort(names)
		t.Logf("seed %s: %s; damaged %v, which ran: %v", l.Layout, l.Title, names, ran)
		if !slices.Equal(names, slices.Compact(want)) {
			t.Errorf("seed %s: damaged %v, by the image %v", l.Layout, names, want)
		}
		if l.Found != (ran != nil) {
			t.Errorf("seed %s: found %v, and of the damage %v ran", l.Layout, l.Found, ran)
		}
	}
	if failed == 0 || passed == 0 {
		t.Fatalf("%d layouts that fail and %d that pass, want some of both", failed, passed)
	}
}
