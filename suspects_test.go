package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"unlucky/fuzz"
	"unlucky/qemu"
)

// suspectsJSON are the suspects of one kernel.
func suspectsJSON(t *testing.T, dir string) *fuzz.Suspicion {
	t.Helper()
	code, out := unlucky(t, "suspects", dir, "-json")
	if code != 0 {
		t.Fatalf("exit status %d", code)
	}
	var told []struct{ *fuzz.Suspicion }
	if err := json.Unmarshal([]byte(out), &told); err != nil || len(told) != 1 {
		t.Fatalf("%d kernels, error %v", len(told), err)
	}
	for i, s := range told[0].Suspects {
		t.Logf("%d: bug %d, %s, %d tied, %+v mod %d, %+v, elsewhere %+v, chance %g", i+1, s.Bug, s.Functions[0].Name,
			len(s.Functions), s.Residues, s.Modulus, s.There, s.Elsewhere, s.Chance)
	}
	return told[0].Suspicion
}

// names are those of the functions of a suspect.
func names(functions []fuzz.SuspectFunction) (out []string) {
	for _, f := range functions {
		out = append(out, f.Name)
	}
	return out
}

// The true culprits of real sweeps come first: in the order of the baseline
// with those that moved as one, in other orders alone.
func TestSuspectsReal(t *testing.T) {
	needKernels(t)
	for _, test := range []struct {
		scenario, seeds string
		culprit, with   string
		modulus         uint64
		most            int // functions tied
	}{
		{"canary", "1:128", "canary_victim", "", 256, 20},
		{"canary", "257:384", "canary_victim", "", 256, 1},
		{"pair", "1:128", "pair_first", "pair_second", 256, 20},
		{"kcfi-seal", "1:64", "desc_make_final", "", 64, 40},
	} {
		t.Run(strings.ReplaceAll(test.scenario+" "+test.seeds, ":", "-"), func(t *testing.T) {
			r := sweepJSON(t, test.scenario, "-seeds", test.seeds, "-accel", "tcg", "-o", t.TempDir())
			t.Log(count(r))
			s := suspectsJSON(t, r.Dir)
			if len(s.Suspects) == 0 {
				t.Fatal(s.TooFew)
			}
			best := s.Suspects[0]
			if !slices.Contains(names(best.Functions), test.culprit) || test.with != "" && !slices.Contains(names(best.With), test.with) ||
				best.Modulus != test.modulus || best.Chance > 0.001 || len(best.Functions) > test.most {
				t.Errorf("first is %v less %v mod %d, with a chance of %g; want %s %s", names(best.Functions), names(best.With), best.Modulus, best.Chance, test.culprit, test.with)
			}
			if failing := r.Count(qemu.Crash) + r.Count(qemu.Hang); s.Fails < failing {
				t.Errorf("%d fail, of at least %d", s.Fails, failing)
			}
			if test.scenario != "kcfi-seal" {
				if s.TooFew != "" {
					t.Error(s.TooFew)
				}
				return
			}
			// What it leaves is too little to be sure, but the order is right.
			if next := slices.IndexFunc(s.Suspects, func(s fuzz.Suspect) bool { return s.Bug == 2 }); next < 0 || !slices.Contains(names(s.Suspects[next].Functions), "__d_alloc") {
				t.Errorf("the second bug's first suspect is not __d_alloc's run: %d", next)
			}
		})
	}
}
