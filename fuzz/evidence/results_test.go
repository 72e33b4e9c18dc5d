package evidence

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// resultsIn writes journals of one sweep below dir, by name, and their
// baseline's layout.
func resultsIn(t *testing.T, dir string, h seeds.Header, journals map[string][]seeds.Record) {
	t.Helper()
	for name, records := range journals {
		path := filepath.Join(dir, name)
		j, err := seeds.OpenJournal(path, h)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if err := j.Append(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		store, err := seeds.Open(filepath.Dir(filepath.Dir(path)), filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		if err := store.SaveBaseline(h.Object, namedText()); err != nil {
			t.Fatal(err)
		}
	}
}

func quiet(string, ...any) {}

// However the records of a sweep are spread over journals and folders, and
// however often one is in them, they are read as the same sweep.
func TestReadResults(t *testing.T) {
	t.Parallel()
	h := seeds.Header{Scenario: "s", Strategy: string(layout.Cover), Accel: "tcg", Object: strings.Repeat("ab", 32)}
	plan := func(seed uint32) string { return layout.Cover.Plan(seed, namedText()).Digest() }
	records := []seeds.Record{{Layout: seeds.Baseline, Verdict: seeds.Verdict{Kind: qemu.Pass, Boots: 1}, Plan: layout.Plan{}.Digest()}}
	for seed := range uint32(40) {
		r := seeds.Record{Layout: seeds.Seed(seed), Verdict: seeds.Verdict{Kind: qemu.Pass, Boots: 1}, Plan: plan(seed)}
		switch seed % 8 {
		case 3:
			r.Kind, r.Title, r.Found, r.Boots, r.Crashes = qemu.Crash, "int3 in f", true, 3, 3
		case 5:
			r.Kind, r.Note = qemu.LinkFailed, "ld.lld: error: x"
		}
		records = append(records, r)
	}
	// read gives what does not depend on folders.
	read := func(dirs ...string) (*Results, []seeds.Record) {
		all, err := ReadResults(dirs, quiet)
		if err != nil || len(all) != 1 || all[0].Layout == nil {
			t.Fatalf("%d sweeps, %v", len(all), err)
		}
		var plain []seeds.Record
		for _, r := range all[0].All() {
			plain = append(plain, r.Record)
		}
		return all[0], plain
	}
	one := t.TempDir()
	resultsIn(t, one, h, map[string][]seeds.Record{"s/sweep.journal": records})
	r, want := read(one)
	if d := cmp.Diff(records, want, cmp.AllowUnexported(seeds.ID{})); d != "" {
		t.Fatalf("one journal:\n%s", d)
	}
	if report := r.Report(); report.Finds() != 5 || report.Count(qemu.LinkFailed) != 5 || report.Count(qemu.Pass) != 30 || report.Strategy != layout.Cover || report.Baseline.Kind != qemu.Pass {
		t.Errorf("its report: %+v", report)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		journals := map[string][]seeds.Record{}
		names := []string{"a/s/sweep.journal", "a/s/sweep-1-of-2.journal", "a/s/sweep-2-of-2.journal", "b/s/sweep.journal"}
		for _, i := range random.Perm(len(records)) {
			for n := 1 + random.IntN(2); n > 0; n-- {
				name := names[random.IntN(len(names))]
				journals[name] = append(journals[name], records[i])
			}
		}
		dir := t.TempDir()
		resultsIn(t, dir, h, journals)
		if _, got := read(filepath.Join(dir, "b"), filepath.Join(dir, "a"), dir); cmp.Diff(want, got, cmp.AllowUnexported(seeds.ID{})) != "" {
			t.Fatalf("spread over %d journals:\n%s", len(journals), cmp.Diff(want, got, cmp.AllowUnexported(seeds.ID{})))
		}
	}
}

// Where two have booted one layout, the failure counts, whoever saw it.
func TestReadResultsDisagree(t *testing.T) {
	t.Parallel()
	h := seeds.Header{Scenario: "s", Strategy: string(layout.Text), Object: strings.Repeat("ab", 32)}
	at := func(r seeds.Record) []seeds.Record {
		r.Layout, r.Plan = seeds.Seed(7), layout.Text.Plan(7, namedText()).Digest()
		return []seeds.Record{r}
	}
	versions := [][]seeds.Record{ // each tells more than the one before
		at(seeds.Record{Verdict: seeds.Verdict{Kind: qemu.LinkFailed}}),
		at(seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Pass, Boots: 1}}),
		at(seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Pass, Boots: 1}, Path: "twin-7.yaml"}),
		at(seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Hang, Boots: 1, Title: "other"}}),
		at(seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Crash, Boots: 3, Crashes: 1, Found: true, Title: "t"}}),
		at(seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Crash, Boots: 3, Crashes: 1, Found: true, Title: "t"}, Path: "t/7.yaml"}),
		at(seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Crash, Boots: 9, Crashes: 4, Found: true, Title: "t"}, Path: "t/7.yaml"}),
	}
	for more := range versions {
		for less := range more {
			for _, first := range []string{"a", "z"} {
				dir := t.TempDir()
				resultsIn(t, dir, h, map[string][]seeds.Record{
					first + "/sweep.journal": versions[more], "m/sweep.journal": versions[less],
				})
				all, err := ReadResults([]string{dir}, quiet)
				if err != nil || len(all) != 1 || len(all[0].Layouts) != 1 {
					t.Fatalf("%+v, %v", all, err)
				}
				if got := all[0].Layouts[0]; got.Kind != versions[more][0].Kind || got.Boots != versions[more][0].Boots || (got.Path == "") != (versions[more][0].Path == "") {
					t.Errorf("of versions %d and %d: %+v", less, more, got)
				}
			}
		}
	}
}

// What cannot be compared is kept apart, and what cannot be read is said beside
// what can.
func TestReadResultsApart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := seeds.Header{Scenario: "s", Strategy: string(layout.Cover), Accel: "tcg", Object: strings.Repeat("ab", 32)}
	record := func(s layout.Strategy) []seeds.Record {
		return []seeds.Record{{Layout: seeds.Seed(1), Verdict: seeds.Verdict{Kind: qemu.Pass}, Plan: s.Plan(1, namedText()).Digest()}}
	}
	resultsIn(t, dir, h, map[string][]seeds.Record{"a/s/sweep.journal": record(layout.Cover)})
	h.Strategy = string(layout.Text) // another way to the layouts, the same question
	resultsIn(t, dir, h, map[string][]seeds.Record{"b/s/sweep.journal": record(layout.Text)})
	h.Accel = "kvm"
	resultsIn(t, dir, h, map[string][]seeds.Record{"c/s/sweep.journal": record(layout.Text)})
	if err := os.WriteFile(filepath.Join(dir, "sweep-2-of-3.journal"), []byte("no journal\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	all, err := ReadResults([]string{dir}, quiet)
	if err == nil || !strings.Contains(err.Error(), "sweep-2-of-3.journal: is not a journal of unlucky") {
		t.Errorf("error %v", err)
	}
	if len(all) != 2 || len(all[0].Dirs) != 2 || len(all[0].Layouts) != 2 || len(all[1].Layouts) != 1 {
		t.Fatalf("%+v", all)
	}
	if s := all[0].Report().Strategy; s != "cover/3, text/1" {
		t.Errorf("strategies %s", s)
	}
	if _, err := ReadResults([]string{""}, quiet); err == nil {
		t.Error("an empty name is no error")
	}
}
