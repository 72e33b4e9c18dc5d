package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"unlucky/fuzz/evidence"
	"unlucky/qemu"
)

// suspectsJSON are the suspects of one kernel.
func suspectsJSON(t *testing.T, dir string) *evidence.Suspicion {
	t.Helper()
	code, out := unlucky(t, "suspects", dir, "-json")
	if code != 0 {
		t.Fatalf("exit status %d", code)
	}
	var told []struct{ *evidence.Suspicion }
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
func names(functions []evidence.SuspectFunction) (out []string) {
	for _, f := range functions {
		out = append(out, f.Name)
	}
	return out
}

// The true culprits of real sweeps come first, alone or with one neighbour that
// no cut has parted from them.
func TestSuspectsReal(t *testing.T) {
	needKernels(t)
	for _, test := range []struct {
		scenario, seeds string
		culprit, with   string // with is what follows it, or whose distance to it counts
		modulus         uint64
		most            int // functions tied
	}{
		{"canary", "257:512", "canary_victim", "", 256, 1},
		{"pair", "1:128", "pair_first", "pair_second", 256, 2},
		{"kcfi-seal", "1:64", "desc_make_final", "_prb_commit", 64, 1},
	} {
		t.Run(strings.ReplaceAll(test.scenario+" "+test.seeds, ":", "-"), func(t *testing.T) {
			r := sweepJSON(t, test.scenario, "-seeds", test.seeds, "-accel", "tcg", "-o", t.TempDir())
			t.Log(count(r))
			s := suspectsJSON(t, r.Dir)
			if len(s.Suspects) == 0 {
				t.Fatal(s.TooFew)
			}
			best := s.Suspects[0]
			if !slices.Contains(names(best.Functions), test.culprit) || test.with != "" && !slices.Contains(append(names(best.With), best.Functions[0].Next), test.with) ||
				best.Modulus != test.modulus || best.Chance > 0.001 || len(best.Functions) > test.most {
				t.Errorf("first is %v less %v mod %d, with a chance of %g; want %s %s", names(best.Functions), names(best.With), best.Modulus, best.Chance, test.culprit, test.with)
			}
			if failing := r.Count(qemu.Crash) + r.Count(qemu.Hang); s.Fails < failing {
				t.Errorf("%d fail, of at least %d", s.Fails, failing)
			}
			// Two of kcfi-seal's three bugs are too rare in 64 layouts to be told.
			if (s.TooFew != "") != (test.scenario == "kcfi-seal") {
				t.Errorf("too few: %q", s.TooFew)
			}
		})
	}
}
