package evidence_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"unlucky/autopsy"
	"unlucky/fuzz/evidence"
	"unlucky/seeds"
)

// Titles with the same damage are one bug, whichever of their layouts was looked into.
func TestBugs(t *testing.T) {
	dir, ran := t.TempDir(), true
	write := func(path string, all ...*autopsy.Damage) {
		if err := seeds.NewAutopsy("seed 1", all).Write(seeds.AutopsyPath(filepath.Join(dir, path))); err != nil {
			t.Fatal(err)
		}
	}
	f, g := autopsy.Damage{Function: "f", Offset: 9, Why: autopsy.Astray, Ran: &ran}, autopsy.Damage{Function: "g", Why: autopsy.Foreign}
	write("a/2.yaml", &f, &g)
	write("b/3.yaml", &f)
	write("c/4.yaml", &g) // which has not run
	write("d/5.yaml")
	finding := func(title string, paths ...string) evidence.Finding {
		f := evidence.Finding{Title: title}
		for _, p := range paths {
			f.Layouts = append(f.Layouts, seeds.Record{Path: p})
		}
		return f
	}
	bugs, err := evidence.Bugs(dir, []evidence.Finding{
		finding("a", "", "a/1.yaml", "a/2.yaml"), finding("b", "b/3.yaml"), finding("c", "c/4.yaml"), finding("d", "d/5.yaml"), finding("e", "e/6.yaml"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(len(bugs), bugs[0].Titles, bugs[0].Layouts, bugs[0].Damage.Function), "1 [a b] 4f"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
